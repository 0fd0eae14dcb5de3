"""One HTTP exchange: who asks, what is read of the body, and whether the client is still there."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Awaitable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .protocol.errors import ApiError, from_msgspec
from .protocol_h11 import ChunkWriter
from .whole_numbers import with_whole_numbers

T = TypeVar("T")
JSON = "application/json"


class ClientGoneError(Exception):
    """The client has left: whatever is being done for it should stop."""


@dataclass
class Exchange:
    """What the gate knows of a request. fields: for its line in the log."""

    id: str
    owner: int = -1  # which API key; -1: there are none
    fields: dict[str, Any] = field(default_factory=dict)


def exchange_of(request: Request) -> Exchange:
    """What the gate has put there."""
    found: Exchange = request.scope["saccade.exchange"]
    return found


async def read_body(request: Request, shape: type[T]) -> T:
    """The body as `shape`. ApiError 415 for another type or a compressed one, 400 for what cannot
    be read; ClientGoneError when it breaks off.
    """
    kind = request.headers.get("content-type", "")
    media, _, parameters = kind.partition(";")
    charset = parameters.partition("charset=")[2].strip().strip('"').lower()
    if media.strip().lower() != JSON or charset not in ("", "utf-8", "utf8"):
        message = f"Send the body as {JSON}, not as {kind[:80]!r}."
        raise ApiError(415, message, code="unsupported_media_type")
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        message = (
            f"Send the body as it is: the content encoding {encoding[:40]!r} is not read here."
        )
        accepts = {"Accept-Encoding": "identity"}
        raise ApiError(415, message, code="unsupported_content_encoding", headers=accepts)
    try:
        # Not by `body()`, which would keep it as long as the request is there.
        content = b"".join([part async for part in request.stream()])
    except ClientDisconnect:
        raise ClientGoneError from None
    body = decoded(content, shape)
    check_counts(body)
    return body


def decoded(content: bytes, shape: type[T]) -> T:
    """JSON as `shape`. ApiError 400."""
    # Of a million new objects a collection frees none, however often it looks at all of them.
    collects = gc.isenabled()
    gc.disable()
    try:
        return _decoded(content, shape)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise from_msgspec(error, content) from None
    finally:
        if collects:
            gc.enable()


def _decoded(content: bytes, shape: type[T]) -> T:
    try:
        return msgspec.json.decode(content, type=shape)
    except msgspec.ValidationError as error:
        whole = with_whole_numbers(content, shape) if "got `float`" in str(error) else None
        if whole is None:
            raise
    return msgspec.json.decode(whole, type=shape)


def check_counts(body: object) -> None:
    """Refuses too many entries in a field that its struct bounds, before anything walks them: here,
    on the event loop, everybody waits for that. ApiError.
    """
    bounds: dict[str, int] = getattr(body, "MOST", {})
    for name, most in bounds.items():
        value = getattr(body, name)
        if isinstance(value, list | dict) and len(value) > most:
            message = f"{name} may hold at most {most} entries, got {len(value)}"
            raise ApiError(400, message, name, "invalid_value")


@contextlib.asynccontextmanager
async def watching(receive: Receive) -> AsyncIterator[None]:
    """Cancels its body, and raises ClientGoneError, when the client leaves."""
    body = asyncio.current_task()
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        if body is not None:
            body.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if gone and body is not None and body.uncancel() == 0:
            raise ClientGoneError from None
        raise
    finally:
        watcher.cancel()


async def unless_gone(request: Request, work: Coroutine[Any, Any, T] | Awaitable[T]) -> T:
    """What `work` returns. ClientGoneError when the client leaves before."""
    async with watching(request.receive):
        return await work


class JsonReply(Response):
    """A struct as JSON."""

    media_type = JSON

    def __init__(self, content: Any, status: int = 200, headers: dict[str, str] | None = None):
        super().__init__(msgspec.json.encode(content), status, headers)


class EventStream(Response):
    """Server-sent events. Until the first event is there, an ApiError is an ordinary reply."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes]) -> None:
        super().__init__()
        del self.headers["content-length"]
        self.headers["cache-control"] = "no-cache"
        self.headers["x-accel-buffering"] = "no"  # nginx: pass events on as they come
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the events, and closes their source however this ends."""
        started, writer = False, ChunkWriter.of(scope)
        try:
            async with watching(receive):
                async for event in self._events:
                    if not started:
                        await send(self._start())
                        started = True
                    if writer is not None:
                        await writer.write(event)
                    else:
                        await send({"type": "http.response.body", "body": event, "more_body": True})
                if not started:
                    await send(self._start())
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await self._events.aclose()  # type: ignore[attr-defined]

    def _start(self) -> dict[str, Any]:
        return {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
