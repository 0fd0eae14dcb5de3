"""The engine process: one thread that takes orders and steps, one that says that it lives.

Run as `python -m saccade.server.worker FOLDER`, with a Start message on standard input, which stays
open as long as the HTTP process lives. It owns the engine, and may be killed at any time.
"""

from __future__ import annotations

import ctypes
import faulthandler
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import zmq

from . import wire
from .deltas import LiveRequest
from .logs import configure_logs
from .wire import Abort, Add, Beat, Check, Checked, EngineInfo, EngineStats, LoadFailed, Refused

if TYPE_CHECKING:
    from ..engine.engine import Engine

BEAT_S = 0.25
_STATS_S = 0.25
_IDLE_POLL_MS = 1000
_PR_SET_PDEATHSIG = 1
Socket = zmq.Socket[bytes]
Context = zmq.Context[Socket]
log = logging.getLogger("saccade.engine")


class Worker:
    """Takes orders between steps, and reports what each step brought."""

    def __init__(self, engine: Engine, orders: Socket, reports: Socket):
        self._engine = engine
        self._orders = orders
        self._reports = reports
        self._live: dict[str, LiveRequest] = {}
        self._steps = 0
        self._told = 0.0  # when the last stats were sent
        self._busy_s, self._told_steps = 0.0, 0
        self._stopping = False

    def serve(self) -> None:
        """Until a Stop order comes. Raises for a fault that belongs to no request."""
        while not self._stopping:
            idle = not self._engine.scheduler.has_work
            if idle:
                self.tell_stats()
                self._orders.poll(_IDLE_POLL_MS)
            self._take_orders()
            if self._engine.scheduler.has_work:
                self._step()

    def _take_orders(self) -> None:
        while True:
            try:
                packed = self._orders.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            order = wire.decode_order(packed)
            if isinstance(order, Add):
                self._add(order)
            elif isinstance(order, Abort):
                self._abort(order.ids)
            elif isinstance(order, Check):
                self._check()
            else:
                self._stopping = True
                return

    def _add(self, order: Add) -> None:
        from ..engine.errors import CapacityError, SaccadeError
        from ..engine.params import SamplingParams

        try:
            generation = self._engine.add(
                wire.unpack_ids(order.prompt),
                SamplingParams(**unpack(order.params)),
                request_id=order.id,
                priority=order.priority,
                cache_salt=order.cache_salt,
                attention=order.attention,
            )
        except SaccadeError as error:
            param = getattr(error, "param", None)
            capacity = isinstance(error, CapacityError)
            self._report(Refused(order.id, str(error), param, capacity))
        except Exception:
            log.exception("a request could not be added", extra={"request": order.id})
            self._report(Refused(order.id, "The engine could not take this request."))
        else:
            self._live[order.id] = LiveRequest(generation)

    def _abort(self, ids: list[str]) -> None:
        ended = [self._live.pop(each) for each in ids if each in self._live]
        for request in ended:
            self._engine.abort(request.id)
        deltas = [delta for request in ended if (delta := request.delta()) is not None]
        if deltas:
            self._report(wire.Deltas(deltas))

    def _step(self) -> None:
        began = time.perf_counter()
        touched = self._engine.step()
        self._steps += 1
        self._busy_s += time.perf_counter() - began
        deltas = []
        for generation in touched:
            request = self._live.get(generation.id)
            delta = request.delta() if request is not None else None
            if delta is not None:
                deltas.append(delta)
                if delta.end is not None:
                    del self._live[generation.id]
        if deltas:
            self._report(wire.Deltas(deltas))
        if time.monotonic() - self._told > _STATS_S:
            self.tell_stats()

    def _check(self) -> None:
        error = None
        try:
            self._engine.scheduler.check_integrity()
        except Exception as fault:
            log.exception("the accounts contradict each other")
            error = str(fault)
        self._report(Checked(error, self._stats()))

    def tell_stats(self) -> None:
        """Sends a snapshot."""
        self._told = time.monotonic()
        self._report(self._stats())
        self._busy_s, self._told_steps = 0.0, self._steps

    def _stats(self) -> EngineStats:
        found = self._engine.scheduler.stats()
        steps = self._steps - self._told_steps
        return EngineStats(
            running=found.running,
            waiting=found.waiting,
            total_pages=list(found.total_pages),
            free_pages=list(found.free_pages),
            idle_pages=list(found.idle_pages),
            cached_pages=list(found.cached_pages),
            evictions=found.evictions,
            lookup_tokens=found.lookup_tokens,
            hit_tokens=found.hit_tokens,
            preemptions=found.preemptions,
            forks=found.forks,
            copies=found.copies,
            finished=dict(found.finished),
            attention=self._engine.reads.as_dict(),
            steps=self._steps,
            step_s=self._busy_s / steps if steps else 0.0,
        )

    def _report(self, report: wire.Report) -> None:
        self._reports.send(wire.encode(report))


def unpack(params: dict[str, Any]) -> dict[str, Any]:
    """Keywords of SamplingParams as they were before the wire."""
    from ..engine.structure import Structure

    found = params.get("structure")
    if found is None:
        return params
    return params | {"structure": Structure(**{**found, "markers": tuple(found["markers"])})}


class Pulse(threading.Thread):
    """Beats while the process lives; what it carries tells work from a standstill."""

    def __init__(self, socket: Socket) -> None:
        super().__init__(name="pulse", daemon=True)
        self.engine: Engine | None = None
        self._socket = socket

    def run(self) -> None:
        """Never ends."""
        while True:
            engine = self.engine
            beat = Beat(0, False)
            if engine is not None:
                beat = Beat(engine.progress, engine.scheduler.has_work)
            self._socket.send(wire.encode(beat))
            time.sleep(BEAT_S)


def open_socket(context: Context, kind: int, address: str) -> Socket:
    """A socket without bounds on its queue: requests in flight are bounded, and so is theirs.

    Orders are bound here and connected there, for a socket that connects can queue from the start.
    """
    socket = context.socket(kind)
    socket.set_hwm(0)
    if kind == zmq.PULL:
        socket.bind(address)
    else:
        socket.connect(address)
    return socket


def load(start: wire.Start) -> tuple[Engine, EngineInfo]:
    """The engine and what the HTTP process must know about it."""
    began = time.perf_counter()
    from ..engine.checkpoint.files import find_checkpoint
    from ..engine.engine import Engine

    engine = Engine(start.model, verbose=start.verbose, **start.options)
    memory, config = engine.memory, engine.model_config
    info = EngineInfo(
        folder=str(find_checkpoint(start.model)),
        vocab_size=config.vocab_size,
        max_model_len=memory.max_model_len,
        max_num_seqs=engine.config.max_num_seqs,
        num_tokens=memory.num_tokens,
        page_size=engine.config.page_size,
        pages=list(memory.pages),
        windows=[group.window for group in memory.request.groups],
        attention=engine.policy.name,
        dtype=engine.config.dtype,
        eos_token_ids=list(config.eos_token_ids),
        load_s=time.perf_counter() - began,
    )
    return engine, info


def run(start: wire.Start, folder: Path) -> int:
    """Load, report, serve; the process's exit status."""
    context: Context = zmq.Context()
    reports = open_socket(context, zmq.PUSH, f"ipc://{folder}/up")
    pulse = Pulse(open_socket(context, zmq.PUSH, f"ipc://{folder}/up"))
    pulse.start()
    try:
        engine, info = load(start)
    except Exception as error:
        from ..engine.errors import SaccadeError

        ours = isinstance(error, SaccadeError | ValueError)
        if not ours:
            log.exception("the engine cannot be loaded")
        reports.send(wire.encode(LoadFailed(str(error) or type(error).__name__, ours)))
        reports.close(linger=2000)
        return 1
    pulse.engine = engine
    worker = Worker(engine, open_socket(context, zmq.PULL, f"ipc://{folder}/down"), reports)
    worker.tell_stats()
    reports.send(wire.encode(info))
    try:
        worker.serve()
    except Exception:
        log.exception("the engine stops: a fault that belongs to no request")
        return 1
    return 0


def read_start(source: BinaryIO) -> wire.Start:
    """The Start message: its size in 4 bytes, then itself."""
    size = int.from_bytes(source.read(4), "little")
    return wire.decode_start(source.read(size))


def die_with_parent(source: BinaryIO) -> None:
    """Ends this process when the HTTP process is gone, however that happened."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    def watch() -> None:
        source.read(1)  # nothing is ever sent: it returns when the other end is closed
        os._exit(0)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def main(argv: list[str] | None = None) -> int:
    """The engine process."""
    folder = Path((sys.argv[1:] if argv is None else argv)[0])
    # The HTTP process decides when to end: Ctrl-C and service managers signal both.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    faulthandler.enable()
    source = sys.stdin.buffer
    start = read_start(source)
    die_with_parent(source)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    configure_logs()
    status = run(start, folder)
    sys.stderr.flush()
    os._exit(status)  # not past threads that native libraries may have left hanging


if __name__ == "__main__":
    main()
