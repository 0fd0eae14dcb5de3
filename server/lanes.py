"""Threads for slow work: one piece after the other, away from the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

T = TypeVar("T")


class Lane:
    """Threads with a queue of their own.

    Unlike those of an executor nothing waits for them when the process ends, and what nobody waits
    for any more is neither begun nor kept.
    """

    def __init__(self, name: str, threads: int) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._threads = [
            Thread(target=self._serve, name=f"{name}-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    async def run(self, work: Callable[[], T]) -> T:
        """What `work` returns or raises. Who is cancelled before its turn takes its work along."""
        future: Future[T] = Future()
        self._jobs.put(_Job(future, work))
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Lets the threads go when they are done; waits for those only that have no work."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join(_IDLE_S)

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            job.do()
            del job  # while this thread waits, nothing of it stays


_IDLE_S = 0.05  # in which a thread without work has ended


class _Job:
    """Work, and who waits for it.

    A cancelled job stays in the queue until its turn, but empty: not with a text of megabytes, nor
    with the future, whose exception knows everybody who has waited and what they hold.
    """

    def __init__(self, future: Future[Any], work: Callable[[], Any]) -> None:
        self._future: Future[Any] | None = future
        self._work: Callable[[], Any] | None = work
        future.add_done_callback(self._forget)

    def _forget(self, _: object) -> None:
        self._work = self._future = None

    def do(self) -> None:
        """Does the work unless it was cancelled."""
        work, future = self._work, self._future
        if work is None or future is None or not future.set_running_or_notify_cancel():
            return
        try:
            found = work()
        except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits
            future.set_exception(error)
        else:
            future.set_result(found)
