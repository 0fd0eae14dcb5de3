"""One life of the engine process, seen from the HTTP process: start, talk, kill."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import zmq

from . import wire
from .signals import held_back
from .wire import Beat, Order, Report, Start

_STOP_S = 3.0  # how long the process has to leave by itself
_LAST_S = 0.05  # how long a dead process's last report may be under way in the socket's thread
_BATCH = 256  # reports taken before the event loop gets its turn
DESCRIPTORS = 32  # that a start takes, with something to spare
_MAX_PATH = 100  # of a Unix socket, in bytes, with something to spare


class EngineGoneError(Exception):
    """The engine process cannot take orders."""


class EngineProcess:
    """Starts the engine in a process of its own and carries wire. OSError where that cannot be.

    on_report is called on the event loop with everything but beats. `beaten` and `moved` are the
    times (monotonic) of the last sign of life, and of the last sign of progress or idleness.
    """

    def __init__(self, start: Start, on_report: Callable[[Report], None]) -> None:
        self.beaten = self.moved = time.monotonic()
        self._start = start
        self._on_report = on_report
        self._progress = -1
        self._process: asyncio.subprocess.Process | None = None
        self._loop = asyncio.get_running_loop()
        check_room()
        self._folder = private_folder()
        try:
            self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
            self._open_sockets()
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise

    def _open_sockets(self) -> None:
        try:
            self._up, self._down = (self._context.socket(kind) for kind in (zmq.PULL, zmq.PUSH))
            self._up.set_hwm(0)
            self._down.set_hwm(0)
            self._up.bind(f"ipc://{self._folder}/up")
            self._down.connect(f"ipc://{self._folder}/down")  # bound by the other side, some day
            self._descriptor = int(self._up.get(zmq.FD))
        except BaseException:
            self._context.destroy(linger=0)
            raise

    async def launch(self) -> None:
        """Starts the process; the model is loaded while others run."""
        self._loop.add_reader(self._descriptor, self.receive)
        # -P: what lies in the working directory must not replace a module.
        with held_back():
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", f"{__package__}.worker", str(self._folder)),
                stdin=asyncio.subprocess.PIPE,
            )
        self.beaten = self.moved = time.monotonic()
        packed = wire.encode(self._start)
        if self._process.stdin is not None:  # and it stays open: its end is the sign to leave
            self._process.stdin.write(len(packed).to_bytes(4, "little") + packed)

    @property
    def pid(self) -> int | None:
        """The process's id, None before it is launched."""
        return None if self._process is None else self._process.pid

    def send(self, order: Order) -> None:
        """Hands over an order at once; it waits in the socket until the engine takes it.

        EngineGoneError after `close`.
        """
        try:
            self._down.send(wire.encode(order), zmq.NOBLOCK)
        except zmq.ZMQError as error:  # closed
            raise EngineGoneError from error

    def receive(self) -> None:
        """Takes reports as long as there are some; the descriptor tells of new ones only."""
        for _ in range(_BATCH):
            if self._up.closed:
                return
            try:
                packed = self._up.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._take(wire.decode_report(packed))
        self._loop.call_soon(self.receive)

    def _take(self, report: Report) -> None:
        now = time.monotonic()
        self.beaten = now
        if not isinstance(report, Beat):
            self._on_report(report)
        elif report.progress != self._progress or not report.pending:
            self._progress, self.moved = report.progress, now

    def kill(self) -> None:
        """SIGKILL; harmless when it is dead."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def wait(self) -> int:
        """Until the process is dead; then its last reports have been taken. Its exit status."""
        status = -1 if self._process is None else await self._process.wait()
        await asyncio.sleep(_LAST_S)
        self.receive()
        return status

    async def stop(self) -> None:
        """Asks the process to leave, and kills it if it does not."""
        if self._process is None:
            return
        try:
            self.send(wire.Stop())
            await asyncio.wait_for(self._process.wait(), _STOP_S)
        except (EngineGoneError, TimeoutError):
            self.kill()
            await self._process.wait()

    def close(self) -> None:
        """Frees sockets and folder; the process must be dead."""
        if not self._up.closed:
            self._loop.remove_reader(self._descriptor)
        self._context.destroy(linger=0)
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def check_room() -> None:
    """OSError where a start would run out of descriptors: ZeroMQ ends the whole process then."""
    held: list[int] = []
    try:
        for _ in range(DESCRIPTORS):
            held.append(os.open(os.devnull, os.O_RDONLY))
    finally:
        for each in held:
            os.close(each)


def private_folder() -> Path:
    """A new folder that only this user may enter, with a path short enough for a socket."""
    folder = Path(tempfile.mkdtemp(prefix="saccade-"))
    if len(str(folder).encode()) > _MAX_PATH:
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix="saccade-", dir="/tmp"))
    return folder
