"""A listening socket that takes no more connections than there are descriptors for."""

from __future__ import annotations

import contextlib
import errno
import logging
import resource
import socket
import sys
import time
from typing import Any

from .process import DESCRIPTORS

_MOST = 65_536  # descriptors that a server asks for
_RESERVE = DESCRIPTORS + 8  # for the next engine process, and for a file now and then
_PAUSE_S = 0.5  # after an accept that failed; asyncio comes back after 1 s
_SHORT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_READ = 65_536
log = logging.getLogger("saccade.server")


def raise_limit() -> None:
    """As many descriptors as this process may have, within reason."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST if hard == resource.RLIM_INFINITY else min(hard, _MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # then it stays as it is
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def most_for_connections() -> int:
    """Connections may not have descriptors from this number on."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else max(soft - _RESERVE, soft // 2)


class Listener(socket.socket):
    """Refuses connections above its measure: they are told `refusal`, or merely closed.

    asyncio would try again to accept what it cannot as often as the backlog is long, every second,
    and nothing else could be opened in the meantime.
    """

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self.refusal = b""
        self.most = most_for_connections()
        self._pause = self._told = 0.0
        self._refused = 0

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection that there is room for. BlockingIOError: not now."""
        now = time.monotonic()
        if now < self._pause:
            raise BlockingIOError
        try:
            connection, address = super().accept()
        except OSError as error:
            if error.errno in _SHORT:
                self._pause = now + _PAUSE_S
            raise
        # The lowest free number is given: all below it are in use.
        if connection.fileno() < self.most:
            return connection, address
        self._refuse(connection)
        self._tell(now)
        raise BlockingIOError  # so that others have their turn

    def _refuse(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.setblocking(False)
            with contextlib.suppress(BlockingIOError):  # what is unread would take the reply away
                connection.recv(_READ)
            connection.send(self.refusal)
            connection.shutdown(socket.SHUT_WR)

    def _tell(self, now: float) -> None:
        self._refused += 1
        if now >= self._told + 1:
            log.warning("no descriptors for more connections", extra={"refused": self._refused})
            self._told, self._refused = now, 0
