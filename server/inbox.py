"""Inbox: where the news of one HTTP request arrive."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import NamedTuple

from .pace import Pace
from .wire import Delta, Refused


class UnavailableError(Exception):
    """The engine cannot serve now, or died with this request.

    retry_s: after how many seconds another try may be worth it; code: a word for programs.
    """

    def __init__(
        self, message: str, retry_s: float = 5.0, code: str = "engine_unavailable"
    ) -> None:
        super().__init__(message)
        self.retry_s = retry_s
        self.code = code


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

    The first news, an end and an error never wait for the pace.
    """

    def __init__(self, on_close: Callable[[list[str]], None], pace: Pace) -> None:
        self.open: dict[str, int] = {}  # engine's id -> prompt number, of those that have not ended
        self._on_close = on_close
        self._pace = pace
        self._paced = False  # whether the pace will give out what is new
        self._begun = False
        self._news: list[Arrived] = []
        self._error: Exception | None = None
        self._ready = False  # whether the reader may take what is there
        self._waiter: asyncio.Future[None] | None = None
        # Timers are dear, and news are many: the one of patience is set anew when it rings.
        self._patience: asyncio.TimerHandle | None = None
        self._patient_until = 0.0

    @property
    def finished(self) -> bool:
        """Whether everything has ended and been taken."""
        return not self.open and not self._news and self._error is None

    async def take(self, patience_s: float) -> list[Arrived]:
        """What is new; nothing when nothing came for so long.

        Raises UnavailableError, RefusedError; what was there before the error is given out first.
        """
        if self._error is None and not self._ready:
            await self._wait(time.monotonic() + patience_s)
        if not self._news and self._error is not None:
            raise self._error
        news, self._news, self._ready = self._news, [], False
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

    def _wake(self) -> None:
        self._ready = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _give_out(self) -> None:
        self._paced = False
        if self._news:  # an end may have come before
            self._wake()

    def put(self, id: str, news: Delta | Exception, at: float | None = None) -> None:
        """Takes a delta, or the error that ends the request."""
        if isinstance(news, Exception):
            self.open.pop(id, None)
            self._error = self._error or news
            urgent = True
        else:
            number = self.open.pop(id) if news.end is not None else self.open[id]
            self._news.append(Arrived(number, news, time.monotonic() if at is None else at))
            urgent = news.end is not None or not self._begun
        self._begun = True
        if urgent:
            self._wake()
        elif not self._paced:
            self._paced = True
            self._pace.wait(self._give_out)

    def close(self) -> None:
        """No more is wanted: what still runs is aborted."""
        ids, self.open = list(self.open), {}
        if self._patience is not None:
            self._patience.cancel()
        if ids:
            self._on_close(ids)
