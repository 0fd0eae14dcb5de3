"""Endpoint: a route and what may be said about it in the specification."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response


@dataclass(frozen=True)
class Endpoint:
    """body, reply: structs; streams: the struct of a chunk, where a stream can be asked for; done:
    whether [DONE] ends it.

    media: the type of a reply that is not JSON. generates: needs the engine, so that it may also
    answer 503. reports: its reply has the status 503 while things are not as they should be.
    public: needs no key.
    """

    method: str
    path: str
    handler: Callable[[Request], Awaitable[Response]]
    body: type[Any] | None = None
    reply: type[Any] | None = None
    streams: type[Any] | None = None
    done: bool = True
    media: str | None = None
    generates: bool = False
    reports: bool = False
    public: bool = False
