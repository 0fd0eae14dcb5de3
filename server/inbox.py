"""Inbox: where the news of one HTTP request arrive."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

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


class Inbox:
    """The news of one HTTP request, which may have several prompts in the engine. One reader."""

    def __init__(self, on_close: Callable[[list[str]], None]) -> None:
        self.open: dict[str, int] = {}  # engine's id -> prompt number, of those that have not ended
        self._on_close = on_close
        self._news: list[tuple[int, Delta]] = []
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def finished(self) -> bool:
        """Whether everything has ended and been taken."""
        return not self.open and not self._news and self._error is None

    async def take(self, patience_s: float) -> list[tuple[int, Delta]]:
        """What is new, as (prompt number, delta); nothing when nothing came for so long.

        Raises UnavailableError, RefusedError; what was there before the error is given out first.
        """
        if not self._news and self._error is None:
            await self._wait(patience_s)
        if not self._news and self._error is not None:
            raise self._error
        news, self._news = self._news, []
        return news

    async def _wait(self, patience_s: float) -> None:
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        timer = loop.call_later(patience_s, self._wake)
        try:
            await self._waiter
        finally:
            timer.cancel()
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def put(self, id: str, news: Delta | Exception) -> None:
        """Takes a delta, or the error that ends the request."""
        if isinstance(news, Exception):
            self.open.pop(id, None)
            self._error = self._error or news
        else:
            number = self.open.pop(id) if news.end is not None else self.open[id]
            self._news.append((number, news))
        self._wake()

    def close(self) -> None:
        """No more is wanted: what still runs is aborted."""
        ids, self.open = list(self.open), {}
        if ids:
            self._on_close(ids)
