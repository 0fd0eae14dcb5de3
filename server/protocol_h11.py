"""uvicorn's HTTP/1.1 with time limits on clients, and our shape for what is no HTTP."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from .protocol.errors import ApiError


def protocol_class(seconds: float, send_s: float) -> type[asyncio.Protocol]:
    """A protocol for clients that may be slow, but not for ever.

    seconds: for the head of a request; send_s: how long a client may leave a full buffer unread.
    """

    class BoundedHead(H11Protocol):
        """Half-sent heads do not stay for ever; between requests the keep-alive limit holds."""

        _head_timer: asyncio.TimerHandle | None = None
        _send_timer: asyncio.TimerHandle | None = None

        def pause_writing(self) -> None:
            """The client does not read: what it holds (a place in the queue too) it may lose."""
            super().pause_writing()
            self._send_timer = self.loop.call_later(send_s, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._send_timer is not None:
                self._send_timer.cancel()
                self._send_timer = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._head_timer = self.loop.call_later(seconds, self.transport.close)

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            self.resume_writing()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self._stop_timer()
            elif self._head_timer is None:
                self._head_timer = self.loop.call_later(seconds, self.transport.close)

        def send_400_response(self, msg: str) -> None:
            """In place of uvicorn's plain text."""
            error = ApiError(400, msg, code="invalid_http")
            headers = [("content-type", "application/json"), ("connection", "close")]
            try:
                for event in (
                    h11.Response(status_code=400, headers=headers, reason="Bad Request"),
                    h11.Data(data=error.body()),
                    h11.EndOfMessage(),
                ):
                    self.transport.write(self.conn.send(event) or b"")
            except h11.LocalProtocolError:
                pass  # a reply is under way: all that is left is to hang up
            self.transport.close()

        def _stop_timer(self) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

    return BoundedHead
