"""What the server says about itself: specification, documentation, metrics."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from ..docs import page
from ..exchange import JsonReply
from ..metrics import CONTENT_TYPE
from ..openapi import Json
from ..service import service_of

Handler = Callable[[Request], Awaitable[Response]]


async def metrics(request: Request) -> Response:
    """Metrics in Prometheus' text format."""
    return Response(service_of(request).metrics.text(), headers={"content-type": CONTENT_TYPE})


def openapi(document: Json) -> Handler:
    """The handler of /openapi.json."""

    async def openapi_json(request: Request) -> Response:
        """The specification of this server."""
        return JsonReply(document)

    return openapi_json


def docs(document: Json) -> Handler:
    """The handler of /docs."""
    content = page(document)

    async def docs_page(request: Request) -> Response:
        """The specification as a page to read."""
        return HTMLResponse(content)

    return docs_page
