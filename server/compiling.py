"""Structures of new requests, compiled on threads of their own while the engine goes on."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from .wire import Add

if TYPE_CHECKING:
    from ..engine.grammar import GrammarCompiler
    from ..engine.grammar_state import GrammarState
    from ..engine.params import SamplingParams

_THREADS = 4  # most of them wait: the compiler has a deadline, and its own bound on work at once
MAX_WAITING = 64


class BusyError(Exception):
    """Too many structures wait to be compiled."""


class Compiling:
    """Requests whose structure is not ready yet. All methods are for the engine's thread.

    `descriptor` is readable when `take` has something to give.
    """

    def __init__(self, grammars: GrammarCompiler) -> None:
        self._grammars = grammars
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="structures")
        self._waiting: dict[str, tuple[Add, SamplingParams]] = {}
        self._done: SimpleQueue[tuple[str, Future[GrammarState]]] = SimpleQueue()
        self._near, self._far = socket.socketpair()
        self._near.setblocking(False)
        self._far.setblocking(False)
        self._pool.submit(grammars.warm_up)  # reading a large vocabulary takes a second

    @property
    def descriptor(self) -> int:
        """For a poll."""
        return self._near.fileno()

    def begin(self, order: Add, params: SamplingParams) -> None:
        """Compiles the structure of `params`, which has one. BusyError when too many wait."""
        structure = params.structure
        if len(self._waiting) >= MAX_WAITING:
            raise BusyError
        if structure is None:
            raise ValueError("this request has no structure")
        self._waiting[order.id] = order, params
        work = self._pool.submit(self._grammars.compile, structure)
        work.add_done_callback(partial(self._note, order.id))

    def _note(self, id: str, work: Future[GrammarState]) -> None:
        """On the thread that has compiled."""
        self._done.put((id, work))
        with contextlib.suppress(BlockingIOError):  # so much unread already wakes it as well
            self._far.send(b"x")

    def cancel(self, id: str) -> tuple[Add, SamplingParams] | None:
        """Forgets a request; None when it does not wait here."""
        return self._waiting.pop(id, None)

    def take(self) -> Iterator[tuple[Add, SamplingParams, Future[GrammarState]]]:
        """What has been compiled, or refused, since the last time."""
        try:
            self._near.recv(4096)
        except BlockingIOError:
            return
        while True:
            try:
                id, work = self._done.get_nowait()
            except Empty:
                return
            if (found := self._waiting.pop(id, None)) is not None:
                yield *found, work
