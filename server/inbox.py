"""Inbox: where the news of one HTTP request arrive."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import NamedTuple

from .wire import Delta, Refused


class UnavailableError(Exception):
    """The engine cannot serve now, or died with this request.

    retry_s: after how many seconds another try may be worth it.
    """

    def __init__(self, message: str, retry_s: float = 5.0) -> None:
        super().__init__(message)
        self.retry_s = retry_s


class RefusedError(Exception):
    """The engine's door refused the request."""

    def __init__(self, report: Refused) -> None:
        super().__init__(report.message)
        self.report = report


class Arrived(NamedTuple):
    """A delta of a request's prompt, and when it came (time.monotonic)."""

    number: int
    delta: Delta
    at: float


class Inbox:
    """The news of one HTTP request, which may have several prompts in the engine. One reader.

    pace_s: the reader is not woken more often than this, for each time costs a write to a socket,
    which is most of what a token costs this process. The first news, an end and an error never
    wait.
    """

    def __init__(self, on_close: Callable[[list[str]], None], pace_s: float = 0.0) -> None:
        self.open: dict[str, int] = {}  # engine's id -> prompt number, of those that have not ended
        self._on_close = on_close
        self._pace_s = pace_s
        self._due = 0.0  # when the reader may be woken again, time.monotonic
        self._news: list[Arrived] = []
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._urgent = False

    @property
    def finished(self) -> bool:
        """Whether everything has ended and been taken."""
        return not self.open and not self._news and self._error is None

    async def take(self, patience_s: float) -> list[Arrived]:
        """What is new; nothing when nothing came for so long.

        Raises UnavailableError, RefusedError; what was there before the error is given out first.
        """
        now = time.monotonic()
        if self._error is None and (not self._news or (now < self._due and not self._urgent)):
            await self._wait(self._due - now if self._news else patience_s)
        if not self._news and self._error is not None:
            raise self._error
        news, self._news, self._urgent = self._news, [], False
        self._due = time.monotonic() + self._pace_s
        return news

    async def _wait(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        self._timer = loop.call_later(seconds, self._wake)
        try:
            await self._waiter
        finally:
            self._timer.cancel()
            self._waiter = self._timer = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def put(self, id: str, news: Delta | Exception, at: float | None = None) -> None:
        """Takes a delta, or the error that ends the request."""
        now = time.monotonic() if at is None else at
        if isinstance(news, Exception):
            self.open.pop(id, None)
            self._error = self._error or news
            self._urgent = True
        else:
            number = self.open.pop(id) if news.end is not None else self.open[id]
            self._news.append(Arrived(number, news, now))
            self._urgent = self._urgent or news.end is not None
        if self._urgent or now >= self._due:
            self._wake()
        elif len(self._news) == 1 and self._waiter is not None and self._timer is not None:
            self._timer.cancel()  # of its patience
            self._timer = self._waiter.get_loop().call_later(self._due - now, self._wake)

    def close(self) -> None:
        """No more is wanted: what still runs is aborted."""
        ids, self.open = list(self.open), {}
        if ids:
            self._on_close(ids)
