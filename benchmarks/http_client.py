"""An HTTP/1.1 client that costs little while it measures: bytes are kept with the time at which
they came, and are read when everything is over.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import h11

_EVENT = b"data: "
_ANSWER_S = 30.0


@dataclass(frozen=True)
class Target:
    """A server: where it is, what goes in front of every path, and headers such as the key."""

    host: str
    port: int
    prefix: str = ""
    tls: bool = False
    headers: Mapping[str, str | bytes] = field(default_factory=dict)

    @classmethod
    def of(cls, url: str, headers: Mapping[str, str | bytes] | None = None) -> Target:
        """Out of `http://host:port`, also with /v1 behind it. ValueError for anything else."""
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is not the address of an HTTP server")
        tls = parts.scheme == "https"
        prefix = parts.path.rstrip("/").removesuffix("/v1")
        return cls(parts.hostname, parts.port or (443 if tls else 80), prefix, tls, headers or {})

    @property
    def url(self) -> str:
        """Where it is, for people."""
        return f"http{'s' if self.tls else ''}://{self.host}:{self.port}{self.prefix}"

    def context(self) -> ssl.SSLContext | None:
        """For TLS, the certificates that this machine trusts."""
        return ssl.create_default_context() if self.tls else None


class Exchange(asyncio.Protocol):
    """One request on a connection of its own, and what came back. Times are of time.perf_counter.

    begun: done when the first event (or the end) has come; ended: when the connection is closed.
    """

    def __init__(self, request: h11.Request, body: bytes) -> None:
        self.request, self.body = request, body
        self.sent = 0.0
        self.parts: list[tuple[float, bytes]] = []
        self.events = 0
        self.lost: Exception | None = None
        loop = asyncio.get_running_loop()
        self.begun: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[None] = loop.create_future()
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Sends the request."""
        self.transport = transport  # type: ignore[assignment]
        connection = h11.Connection(h11.CLIENT)
        data = connection.send(self.request)
        data += connection.send(h11.Data(data=self.body)) if self.body else b""
        self.sent = time.perf_counter()
        self.transport.write(data)

    def data_received(self, data: bytes) -> None:
        """Keeps what came."""
        self.parts.append((time.perf_counter(), data))
        self.events += data.count(_EVENT)
        if self.events and not self.begun.done():
            self.begun.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        """The end, whoever wanted it."""
        self.lost = error
        for future in (self.begun, self.ended):
            if not future.done():
                future.set_result(None)

    def leave(self) -> None:
        """Goes away without waiting for the rest."""
        if self.transport is not None:
            self.transport.abort()


async def send(
    target: Target,
    path: str,
    body: Any = None,
    headers: Mapping[str, str] | None = None,
    context: ssl.SSLContext | None = None,
) -> Exchange:
    """Connects and sends: POST with a body as JSON, else GET. OSError when nobody listens."""
    content = b"" if body is None else json.dumps(body).encode()
    about: dict[str, str | bytes] = {
        "host": f"{target.host}:{target.port}",
        "connection": "close",
        **target.headers,
    }
    if content:
        about |= {"content-type": "application/json", "content-length": str(len(content))}
    request = h11.Request(
        method="POST" if content else "GET",
        target=target.prefix + path,
        headers=list((about | dict(headers or {})).items()),
    )
    tls = context or target.context()
    loop = asyncio.get_running_loop()
    _, made = await loop.create_connection(
        lambda: Exchange(request, content), target.host, target.port, ssl=tls
    )
    return made


@dataclass(frozen=True)
class Reply:
    """A reply. ended: when its last byte came; whole: whether it was complete."""

    status: int
    body: bytes
    ended: float
    whole: bool
    events: list[tuple[float, Any]]  # (time, decoded data), without [DONE]

    @property
    def json(self) -> Any:
        """The body, when it is no stream."""
        return json.loads(self.body)


def read(exchange: Exchange) -> Reply:
    """What came, decoded. Status 0: nothing did."""
    connection = h11.Connection(h11.CLIENT)
    connection.send(exchange.request)
    if exchange.body:
        connection.send(h11.Data(data=exchange.body))
    connection.send(h11.EndOfMessage())
    status, whole, body = 0, False, []
    try:
        for came, data in [*exchange.parts, (time.perf_counter(), b"")]:
            connection.receive_data(data)
            while (event := connection.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
                if isinstance(event, h11.Response):
                    status = event.status_code
                elif isinstance(event, h11.Data):
                    body.append((came, bytes(event.data)))
                elif isinstance(event, h11.EndOfMessage):
                    whole = True
                elif isinstance(event, h11.ConnectionClosed):
                    break
    except h11.RemoteProtocolError:
        pass  # cut off: `whole` says so
    ended = exchange.parts[-1][0] if exchange.parts else exchange.sent
    return Reply(status, b"".join(data for _, data in body), ended, whole, list(_events(body)))


def _events(body: list[tuple[float, bytes]]) -> Any:
    """(time, data) of server-sent events; an event came when its last byte did."""
    rest = b""
    for came, data in body:
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if line.startswith(_EVENT) and line[6:].strip() != b"[DONE]":
                yield came, json.loads(line[6:])


async def ask(
    target: Target,
    path: str,
    body: Any = None,
    headers: Mapping[str, str] | None = None,
    patience_s: float = _ANSWER_S,
) -> Reply:
    """Sends a request and waits for the whole reply. OSError when nobody listens, TimeoutError (one
    of them) when nobody answers in time.
    """
    exchange = await asyncio.wait_for(send(target, path, body, headers), patience_s)
    try:
        await asyncio.wait_for(exchange.ended, patience_s)
    finally:
        exchange.leave()
    return read(exchange)
