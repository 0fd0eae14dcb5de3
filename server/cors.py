"""Pages of other origins: what browsers are told, and their questions beforehand."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from .protocol.errors import ApiError

_PREFLIGHT = "saccade.preflight"  # in a request's scope: the answer to a browser's question


class Cors(CORSMiddleware):
    """starlette's, around the gate, for an error's reply needs the headers too.

    Questions beforehand pass the gate like everything else: they are named, logged, and refused in
    our shape.

    Any header may be sent, for the origin decides and not the headers' names: OpenAI's own client
    has a dozen of its own. Cookies mean nothing here, and are not asked for. A page of an origin
    that was named may reach this machine though it came from the internet, which Chrome asks too.
    """

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["Retry-After", "X-Request-Id"],
        )
        self.allow_private_network = True  # older releases of starlette take no such argument

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "http" and scope["method"] == "OPTIONS":
            headers = Headers(scope=scope)
            if "origin" in headers and "access-control-request-method" in headers:
                scope[_PREFLIGHT] = self.preflight_response(headers)
                await self.app(scope, receive, send)
                return
        await super().__call__(scope, receive, send)


def preflight_of(scope: Scope) -> Response | None:
    """The answer to a question beforehand, which needs no key; None for any other request.

    ApiError 400 for what is not allowed.
    """
    found: Response | None = scope.get(_PREFLIGHT)
    if found is not None and found.status_code != 200:
        headers = {"Vary": found.headers["vary"]}
        message = f"{bytes(found.body).decode()}: see --cors-origin."
        raise ApiError(found.status_code, message, code="cors_refused", headers=headers)
    return found
