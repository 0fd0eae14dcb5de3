"""What the server says about itself: specification, documentation, metrics."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from ..docs import page
from ..exchange import JsonReply
from ..metrics import CONTENT_TYPE
from ..openapi import Json
from ..playground import Page
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
    made = Page.of(page(document))

    async def docs_page(request: Request) -> Response:
        """The specification as a page to read."""
        return HTMLResponse(made.content, headers=made.headers)

    return docs_page


def playground(made: Page) -> Handler:
    """The handler of /."""

    async def playground_page(request: Request) -> Response:
        """A page to try the model with."""
        return HTMLResponse(made.content, headers=made.headers)

    return playground_page
