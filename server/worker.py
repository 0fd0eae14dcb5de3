"""The engine process: one thread that takes orders and steps, one that says that it lives.

Run as `python -m saccade.server.worker FOLDER`, with a Start message on standard input, which stays
open as long as the HTTP process lives. It owns the engine, and may be killed at any time.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import zmq

from . import wire
from .engine_loop import EngineLoop, Socket
from .logs import configure_logs, secure_streams
from .signals import leave_to_parent
from .wire import Beat, EngineInfo, LoadFailed

if TYPE_CHECKING:
    from ..engine.engine import Engine

BEAT_S = 0.25
_PR_SET_PDEATHSIG = 1
Context = zmq.Context[Socket]
log = logging.getLogger("saccade.engine")


class Pulse(threading.Thread):
    """Beats while the process lives; what it carries tells work from a standstill."""

    def __init__(self, socket: Socket) -> None:
        super().__init__(name="pulse", daemon=True)
        self.engine: Engine | None = None
        self._socket = socket
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Ends it, and closes its socket."""
        self._stopped.set()
        self.join()
        self._socket.close(linger=0)

    def run(self) -> None:
        """Until it is stopped."""
        while True:
            engine = self.engine
            beat = Beat(0, False)
            if engine is not None:
                beat = Beat(engine.progress, engine.scheduler.has_work)
            self._socket.send(wire.encode(beat))
            if self._stopped.wait(BEAT_S):
                return


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
        hidden_size=config.hidden_size,
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
        # A process that merely ends may take the report with it: the context waits for its sending.
        pulse.stop()
        reports.close(linger=2000)
        context.term()
        return 1
    pulse.engine = engine
    loop = EngineLoop(engine, open_socket(context, zmq.PULL, f"ipc://{folder}/down"), reports)
    loop.tell_stats()
    reports.send(wire.encode(info))
    gc.freeze()  # a collection in the middle of a step need not look at what stays anyway
    try:
        loop.serve()
    except Exception:
        log.exception("the engine stops: a fault that belongs to no request")
        return 1
    return 0


def read_start(source: BinaryIO) -> wire.Start | None:
    """The Start message: its size in 4 bytes, then itself. None when the HTTP process has ended
    before it sent it.
    """
    size = int.from_bytes(source.read(4), "little")
    packed = source.read(size)
    return wire.decode_start(packed) if 0 < size == len(packed) else None


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
    leave_to_parent()
    secure_streams()
    faulthandler.enable()
    source = sys.stdin.buffer
    start = read_start(source)
    if start is None:
        return 0
    die_with_parent(source)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    configure_logs()
    status = run(start, folder)
    sys.stderr.flush()
    os._exit(status)  # not past threads that native libraries may have left hanging


if __name__ == "__main__":
    main()
