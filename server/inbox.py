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
        self._urgent = False
        # Timers are dear, and news are many: the one of patience is set anew when it rings.
        self._patience: asyncio.TimerHandle | None = None
        self._patient_until = 0.0
        self._pacer: asyncio.TimerHandle | None = None

    @property
    def finished(self) -> bool:
        """Whether everything has ended and been taken."""
        return not self.open and not self._news and self._error is None

    async def take(self, patience_s: float) -> list[Arrived]:
        """What is new; nothing when nothing came for so long.

        Raises UnavailableError, RefusedError; what was there before the error is given out first.
        """
        now = time.monotonic()
        if self._error is None and not self._news:
            await self._wait(now + patience_s)
        elif self._error is None and now < self._due and not self._urgent:
            self._pace(now)
            await self._wait(now + patience_s)
        if not self._news and self._error is not None:
            raise self._error
        news, self._news, self._urgent = self._news, [], False
        self._due = time.monotonic() + self._pace_s
        return news

    async def _wait(self, until: float) -> None:
        """Until somebody wakes the reader, or this time (of time.monotonic)."""
        self._waiter = asyncio.get_running_loop().create_future()
        self._patient_until = until
        if self._patience is None:
            self._lose_patience()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _lose_patience(self) -> None:
        left = self._patient_until - time.monotonic()
        self._patience = None
        if left <= 0:
            self._wake()
        elif self._waiter is not None:
            self._patience = self._waiter.get_loop().call_later(left, self._lose_patience)

    def _pace(self, now: float) -> None:
        """The reader is woken when it is due."""
        if self._pacer is None:
            loop = asyncio.get_running_loop()
            self._pacer = loop.call_later(self._due - now, self._give_out)

    def _give_out(self) -> None:
        self._pacer = None
        if self._news:  # an end may have come before
            self._wake()

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
        elif self._waiter is not None:
            self._pace(now)

    def close(self) -> None:
        """No more is wanted: what still runs is aborted."""
        ids, self.open = list(self.open), {}
        for timer in (self._patience, self._pacer):
            if timer is not None:
                timer.cancel()
        if ids:
            self._on_close(ids)
