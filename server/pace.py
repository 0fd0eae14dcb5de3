"""Pace: when the readers of streams are woken, all of them together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


class Pace:
    """Wakes readers when the engine has reported a step, and not more often than every `least_s`.

    A token of one stream costs this process a write to a socket, which takes time from an engine
    on the same processor. Right after a report the engine does least, so that streams are written
    then, one behind the other, and not when a timer of each of them rings.
    """

    def __init__(self, least_s: float = 0.0) -> None:
        self._least_s = least_s
        self._last = 0.0  # when readers were last woken, time.monotonic
        self._waiting: list[Callable[[], None]] = []
        self._timer: asyncio.TimerHandle | None = None

    def wait(self, wake: Callable[[], None]) -> None:
        """Calls `wake` once, at a report's end or soon after."""
        self._waiting.append(wake)

    def reported(self, now: float) -> None:
        """Everything that the engine had to say has been handed out; now: of time.monotonic."""
        if not self._waiting:
            return
        if now - self._last >= self._least_s:
            self._wake_all(now)
        elif self._timer is None:  # there may be no other report for long
            left = self._last + 2 * self._least_s - now
            self._timer = asyncio.get_running_loop().call_later(left, self._ring)

    def _ring(self) -> None:
        self._timer = None
        self.reported(time.monotonic())

    def _wake_all(self, now: float) -> None:
        self._last = now
        waiting, self._waiting = self._waiting, []
        for wake in waiting:
            wake()
