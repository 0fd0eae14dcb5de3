"""Work of unknown length on threads of their own: few at once, each awaited for a limited time."""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

Result = TypeVar("Result")
_STARTING = threading.Lock()
_AT_EXIT_S = 30.0
_running: set[threading.Thread] = set()


class BoundedWork(Generic[Result]):
    """Runs what nothing can stop, and stops waiting for it. Safe to use from several threads."""

    def __init__(self, name: str, at_once: int, stack: int) -> None:
        """name: of the threads. at_once: how many may run. stack: of each, in bytes."""
        self._name = name
        self._stack = stack
        self._slots = threading.BoundedSemaphore(at_once)

    def run(self, work: Callable[[], Result], seconds: float) -> Result:
        """What `work` returns or raises; TimeoutError after `seconds`, while it goes on."""
        end = time.monotonic() + seconds
        if not self._slots.acquire(timeout=seconds):
            raise TimeoutError
        box: list[Result | Exception] = []

        def fill() -> None:
            try:
                box.append(work())
            except Exception as error:  # noqa: BLE001 - it is raised again where it is awaited
                box.append(error)
            finally:
                self._leave(thread)

        # A daemon: one that is stuck must not keep the process from ending.
        thread = threading.Thread(target=fill, name=self._name, daemon=True)
        self._start(thread)
        thread.join(max(0.0, end - time.monotonic()))
        if not box:
            raise TimeoutError
        if isinstance(box[0], Exception):
            raise box[0]
        return box[0]

    def _start(self, thread: threading.Thread) -> None:
        _running.add(thread)
        with _STARTING:
            usual = threading.stack_size(self._stack)
            try:
                thread.start()
            except RuntimeError:  # the system gives no more threads
                self._leave(thread)
                raise
            finally:
                threading.stack_size(usual)

    def _leave(self, thread: threading.Thread) -> None:
        _running.discard(thread)
        self._slots.release()


@atexit.register
def _wait_for_all() -> None:
    """Native code that comes back to an interpreter which has ended takes the process down."""
    end = time.monotonic() + _AT_EXIT_S
    for thread in list(_running):
        thread.join(max(0.0, end - time.monotonic()))
