"""Logs: one JSON object per line on stderr, for machines and for `grep`."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import select
import stat
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

# What `logging` itself puts into a record; everything else came by `extra`.
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_PATIENCE_MS = 200  # with who reads stderr
_encode = msgspec.json.Encoder(enc_hook=str).encode


class JsonLines(logging.Formatter):
    """time, level, logger, event, then the fields of `extra`, then a traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        line |= {key: value for key, value in vars(record).items() if key not in _OWN}
        if record.exc_info and record.exc_info[0] is not None:
            line["traceback"] = self.formatException(record.exc_info)
        return _encode(line).decode()


class LoopErrors:
    """What nobody awaits goes to the log too, but one a second at most: it may come in floods."""

    def __init__(self) -> None:
        self._next = 0.0
        self._left_out = 0

    def __call__(self, loop: AbstractEventLoop, context: dict[str, Any]) -> None:
        """As asyncio's exception handlers are called."""
        now = time.monotonic()
        if now < self._next:
            self._left_out += 1
            return
        error = context.get("exception")
        more = {"left_out": self._left_out} if self._left_out else {}
        logging.getLogger("saccade.loop").error(context["message"], exc_info=error, extra=more)
        self._next, self._left_out = now + 1, 0


def configure_logs(level: str = "info") -> None:
    """Sends the loggers of Saccade, of uvicorn and of asyncio to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name, least in (("saccade", level.upper()), ("uvicorn", "WARNING"), ("asyncio", "WARNING")):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(least)
        logger.propagate = False


class _Lossy(io.FileIO):
    """A descriptor that loses what is not taken: by a full disk, a reader or terminal that left, or
    one that stopped reading.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number, "wb", closefd=False)
        self._door = number
        self._patient = True
        if stat.S_ISFIFO(os.fstat(number).st_mode):
            # Opened once more, for that it does not block must not be so for others who have it.
            with contextlib.suppress(OSError):
                self._door = os.open(f"/proc/self/fd/{number}", os.O_WRONLY | os.O_NONBLOCK)

    def write(self, data: Any, /) -> int:
        """As if all of it, or what was written of it."""
        try:
            if self._door != self.fileno():
                self._patient = self._wait()
            return os.write(self._door, data)
        except OSError:
            return len(data)

    def _wait(self) -> bool:
        """Whether a pipe has room; a reader that had no time for it once is not waited for again
        before it is back.
        """
        poll = select.poll()
        poll.register(self._door, select.POLLOUT)
        return bool(poll.poll(_PATIENCE_MS if self._patient else 0))


def secure_streams() -> None:
    """What is said never ends who says it: the standard streams exist, and stderr takes anything.

    Those that are closed lead nowhere: their numbers must not become those of sockets.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            _occupy(number)
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115
        elif name == "stderr" and sys.stderr is not sys.__stderr__:
            return  # somebody has put something else in its place
    raw = io.BufferedWriter(_Lossy(sys.stderr.fileno()))
    sys.stderr = io.TextIOWrapper(raw, sys.stderr.encoding, "backslashreplace", line_buffering=True)


def _occupy(number: int) -> None:
    try:
        os.fstat(number)
    except OSError:
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(nowhere, number)
        if nowhere != number:
            os.close(nowhere)
