"""The gate: every request passes it, on the way in and on the way out.

It names the request, asks for the key, bounds the body, turns exceptions into replies, and writes
the line in the log.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import re
import time
import uuid
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .cors import preflight_of
from .exchange import ClientGoneError, Exchange
from .limits import Bodies
from .protocol.errors import ApiError
from .protocol_h11 import hang_up
from .service import Service

# Paths that need no key: whether it lives, what it measures, what it offers.
OPEN = frozenset(
    {"/", "/docs", "/health", "/live", "/metrics", "/openapi.json", "/ready", "/version"}
)
_METHODS = frozenset({"GET", "HEAD", "POST", "OPTIONS"})
_QUIET = frozenset({"/health", "/live", "/ready", "/metrics"})
_LOGGED_PATH = 500  # characters
_ID = re.compile(r"[\x21-\x7e]{1,128}")
_CLIENT_GONE = 499  # nginx's name for it; nobody is there to read it
log = logging.getLogger("saccade.request")


class Gate:
    """ASGI middleware around all routes."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service
        self._keys = [digest(key.encode()) for key in service.config.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":  # there are no websockets here, and lifespan is run.py's
            return
        began = time.monotonic()
        headers = Headers(scope=scope)
        exchange = Exchange(request_id(headers.get("x-request-id")))
        out = Outgoing(send, exchange.id)
        scope["saccade.exchange"] = exchange
        scope["saccade.service"] = self._service
        scope["app"] = None  # so that the router raises instead of replying by itself
        limits = self._service.config.limits
        body = BoundedBody(receive, limits.body_bytes, limits.body_s, self._service.bodies)
        try:
            check_head(scope, limits.header_bytes)
            if (preflight := preflight_of(scope)) is not None:
                await preflight(scope, receive, out)
                return
            exchange.owner = self._authorise(scope["path"], headers)
            body.check_length(headers.get("content-length"))
            await self._app(scope, body, out)
        except ClientGoneError:
            out.status = out.status or _CLIENT_GONE
            exchange.fields["client_gone"] = True
        except asyncio.CancelledError:  # the server ends, and waits no longer
            exchange.fields["cut_off"] = True
            if out.status:
                await hang_up(scope, receive)
            else:
                await out.fail(self._service.shutting_down())
        except Exception as error:  # noqa: BLE001 - the last door: whatever it is, it ends as a reply
            await out.fail(as_api_error(error, exchange.id))
        finally:
            body.close()
            metrics = self._service.metrics
            method = scope["method"] if scope["method"] in _METHODS else "other"
            metrics.http.labels(method, str(out.status)).inc()
            if out.error is not None and out.status == 503:
                metrics.refused.labels(out.error.info.code or "").inc()
            self._log(scope, exchange, out, time.monotonic() - began)

    def _authorise(self, path: str, headers: Headers) -> int:
        """The number of the key, -1 where none is needed. ApiError 401."""
        if not self._keys or path in OPEN:
            return -1
        kind, _, key = headers.get("authorization", "").partition(" ")
        sent = key.strip(" \t").encode("latin-1")  # as its bytes were read: they are back
        given = digest(sent) if kind.lower() == "bearer" else b""
        found = -1
        for number, known in enumerate(self._keys):  # all of them: no time tells which one
            if hmac.compare_digest(given, known):
                found = number
        if found < 0:
            message = "Give a valid API key as `Authorization: Bearer KEY`."
            challenge = {"WWW-Authenticate": "Bearer"}
            raise ApiError(401, message, code="invalid_api_key", headers=challenge)
        return found

    def _log(self, scope: Scope, exchange: Exchange, out: Outgoing, seconds: float) -> None:
        level = logging.DEBUG if scope["path"] in _QUIET else logging.INFO
        if not log.isEnabledFor(level):
            return
        about: dict[str, Any] = {
            "id": exchange.id,
            "method": scope["method"],
            "path": scope["path"][:_LOGGED_PATH],
            "status": out.status,
            "seconds": round(seconds, 4),
        }
        if out.error is not None:
            about["error"] = str(out.error)
        log.log(level, "request", extra=about | exchange.fields)


class Outgoing:
    """`send`, with our headers on every reply; knows what has been said."""

    def __init__(self, send: Send, id: str) -> None:
        self.status = 0
        self.error: ApiError | None = None
        self._send = send
        self._headers = [(b"x-request-id", id.encode())]

    async def __call__(self, message: Message) -> None:
        """Passes a message on."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), *self._headers]
        await self._send(message)

    async def fail(self, error: ApiError) -> None:
        """Replies with an error, unless a reply has begun: then the connection can only break."""
        self.error = error
        if self.status:
            raise error
        headers = {"content-type": "application/json", **error.headers}
        body = error.body()
        headers["content-length"] = str(len(body))
        pairs = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await self({"type": "http.response.start", "status": error.status, "headers": pairs})
        await self({"type": "http.response.body", "body": body})


class BoundedBody:
    """`receive`, for a body of bounded size that arrives in bounded time.

    It has its place among `bodies` until it is closed: what is made of it is as large.
    """

    def __init__(self, receive: Receive, size: int, seconds: float, bodies: Bodies) -> None:
        self._receive = receive
        self._size = size
        self._got = self._held = 0
        self._bodies = bodies
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds
        self._whole = False

    def check_length(self, announced: str | None) -> None:
        """Refuses a body that says that it is too long. ApiError 413."""
        if announced is not None and announced.isdecimal() and int(announced) > self._size:
            raise self._too_long()

    async def __call__(self) -> Message:
        """The next message. ApiError 413 or 408."""
        if self._whole:
            return await self._receive()
        try:
            wait = self._deadline - time.monotonic()
            message = await asyncio.wait_for(self._receive(), max(0.0, wait))
        except TimeoutError:
            late = f"The body did not arrive within {self._seconds:g} s."
            close = {"Connection": "close"}
            raise ApiError(408, late, code="timeout", headers=close) from None
        if message["type"] == "http.request":
            self._got += len(message.get("body", b""))
            self._whole = not message.get("more_body", False)
            if self._got > self._size:
                raise self._too_long()
            if self._got > self._bodies.SMALL:
                self._bodies.take(self._got - self._held)
                self._held = self._got
        return message

    def close(self) -> None:
        """Gives its place back."""
        self._bodies.give_back(self._held)
        self._held = 0

    def _too_long(self) -> ApiError:
        message = f"The body may have at most {self._size} bytes."
        return ApiError(413, message, code="body_too_large")


def check_head(scope: Scope, size: int) -> None:
    """Refuses a head that is too large (the parser below sees to it only where it comes in pieces),
    and one with two lengths of the body, over which a proxy and we might differ. ApiError 431, 400.
    """
    close = {"Connection": "close"}
    if {b"content-length", b"transfer-encoding"} <= {name for name, _ in scope["headers"]}:
        message = "A request has either Content-Length or Transfer-Encoding."
        raise ApiError(400, message, code="invalid_http", headers=close)
    fields = sum(len(name) + len(value) + 4 for name, value in scope["headers"])
    if fields + len(scope.get("raw_path") or b"") + len(scope["query_string"]) > size:
        message = f"The head of a request may have at most {size} bytes."
        raise ApiError(431, message, code="head_too_large", headers=close)


def request_id(given: str | None) -> str:
    """The client's id if it is a decent one, else a new one."""
    return given if given is not None and _ID.fullmatch(given) else uuid.uuid4().hex


def digest(key: bytes) -> bytes:
    """Keys are compared by their digests, which are all of one length."""
    return hashlib.sha256(key).digest()


def as_api_error(error: Exception, id: str) -> ApiError:
    """Any exception as a reply; nothing of an unexpected one reaches the client."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, HTTPException) and error.status_code in (404, 405):
        words = {
            404: "There is nothing at this address.",
            405: "This method is not for this address.",
        }
        code = {404: "not_found", 405: "method_not_allowed"}[error.status_code]
        headers = dict(error.headers or {})
        return ApiError(error.status_code, words[error.status_code], code=code, headers=headers)
    log.error("a request failed", exc_info=error, extra={"id": id})
    message = f"The server failed on this request; its log has the cause under {id}."
    return ApiError(500, message, code="internal_error")
