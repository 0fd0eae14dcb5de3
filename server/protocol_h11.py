"""uvicorn's HTTP/1.1 with time limits on clients, and our shape for what is no HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import re
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote

import h11
from starlette.types import Receive, Scope
from uvicorn.protocols.http.h11_impl import H11Protocol

from .protocol.errors import ApiError

CONNECTION = "saccade.connection"  # in a request's scope: the protocol that it came by
_ORIGIN = re.compile(rb"https?://[^/]+", re.IGNORECASE)


class ChunkWriter:
    """Writes parts of a streamed reply past h11, whose accounts cost as much as all else together.

    Nothing is lost by it: in a chunked body h11 counts nothing, and the end goes through it again.
    """

    def __init__(self, protocol: H11Protocol) -> None:
        self._flow, self._transport = protocol.flow, protocol.transport
        self._cycle = protocol.cycle

    @classmethod
    def of(cls, scope: Scope) -> ChunkWriter | None:
        """For the reply to this request; None where there are no chunks (HTTP/1.0)."""
        protocol: H11Protocol | None = scope.get(CONNECTION)
        if protocol is None or scope["http_version"] != "1.1":
            return None
        return cls(protocol)

    async def write(self, data: bytes) -> None:
        """Sends it as one chunk, when the client has read enough of what came before."""
        if self._flow.write_paused and not self._cycle.disconnected:
            await self._flow.drain()
        if data and not self._cycle.disconnected:
            self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))


def in_origin_form(scope: Scope) -> Scope:
    """The scope (it is changed) of a request whose target may be a whole URI (RFC 9112, 3.2.2), as
    clients of a proxy send it: whatever it calls this server, its path is what is asked for.
    """
    if origin := _ORIGIN.match(scope["raw_path"]):
        raw = scope["raw_path"][origin.end() :] or b"/"
        scope.update(raw_path=raw, path=unquote(raw.decode("ascii")))
    return scope


async def hang_up(scope: Scope, receive: Receive) -> None:
    """Breaks the connection of a reply that will not be finished, so that its client sees it."""
    protocol: H11Protocol | None = scope.get(CONNECTION)
    if protocol is not None:
        protocol.transport.abort()
        while (await receive())["type"] != "http.disconnect":
            pass


class BoundedProtocol(H11Protocol):
    """Half-sent heads do not stay for ever; between requests the keep-alive limit holds.

    head_s, send_s: see `protocol_class`.
    """

    head_s: float
    send_s: float
    _head_timer: asyncio.TimerHandle | None = None
    _send_timer: asyncio.TimerHandle | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        app = self.app

        async def known(scope: Any, receive: Any, send: Any) -> None:
            scope[CONNECTION] = self
            await app(in_origin_form(scope), receive, send)

        self.app = known

    def pause_writing(self) -> None:
        """The client does not read: what it holds (a place in the queue too) it may lose."""
        super().pause_writing()
        self._send_timer = self.loop.call_later(self.send_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(self.head_s, self.transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_timer()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_s, self.transport.close)

    def send_400_response(self, msg: str) -> None:
        """In place of uvicorn's plain text."""
        error = ApiError(400, msg, code="invalid_http")
        # Where a reply is under way, all that is left is to hang up.
        with contextlib.suppress(h11.LocalProtocolError):
            self.transport.write(written(error, self.conn))
        self.transport.close()

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def written(error: ApiError, conn: h11.Connection | None = None) -> bytes:
    """A whole reply, after which the connection is closed. conn: where nothing has been said yet;
    None: a new one. LocalProtocolError where it does not fit.
    """
    conn = h11.Connection(h11.SERVER) if conn is None else conn
    headers = [("content-type", "application/json"), ("connection", "close")]
    headers += error.headers.items()
    events = (
        h11.Response(
            status_code=error.status, headers=headers, reason=HTTPStatus(error.status).phrase
        ),
        h11.Data(data=error.body()),
        h11.EndOfMessage(),
    )
    return b"".join(conn.send(event) or b"" for event in events)


def protocol_class(seconds: float, send_s: float) -> type[asyncio.Protocol]:
    """A protocol for clients that may be slow, but not for ever.

    seconds: for the head of a request; send_s: how long a client may leave a full buffer unread.
    """
    return type("BoundedHead", (BoundedProtocol,), {"head_s": seconds, "send_s": send_s})
