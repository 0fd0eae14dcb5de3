"""The application: the table of routes, and the gate in front of them."""

from __future__ import annotations

from starlette.routing import Route, Router
from starlette.types import ASGIApp

from .cors import Cors
from .endpoints import Endpoint
from .gate import Gate
from .openapi import specification
from .playground import playground
from .protocol.chat import ChatChunk, ChatCompletion, ChatRequest
from .protocol.completions import Completion, CompletionRequest
from .protocol.embeddings import Embeddings, EmbeddingsRequest
from .protocol.other import (
    AbortReply,
    AbortRequest,
    DetokenizeReply,
    DetokenizeRequest,
    HealthReply,
    Model,
    ModelList,
    TokenizeReply,
    TokenizeRequest,
    VersionReply,
)
from .protocol.responses import ResponseEvent, ResponseReply, ResponsesRequest
from .routes import about, other
from .routes.chat import chat_completions
from .routes.completions import completions
from .routes.embeddings import embeddings
from .routes.responses import responses
from .service import Service


def endpoints() -> list[Endpoint]:
    """Every route of the specification."""
    post, get = "POST", "GET"
    return [
        Endpoint(
            post,
            "/v1/completions",
            completions,
            CompletionRequest,
            Completion,
            streams=Completion,
            generates=True,
        ),
        Endpoint(
            post,
            "/v1/chat/completions",
            chat_completions,
            ChatRequest,
            ChatCompletion,
            streams=ChatChunk,
            generates=True,
        ),
        Endpoint(
            post,
            "/v1/responses",
            responses,
            ResponsesRequest,
            ResponseReply,
            streams=ResponseEvent,
            done=False,
            generates=True,
        ),
        Endpoint(post, "/v1/embeddings", embeddings, EmbeddingsRequest, Embeddings, generates=True),
        Endpoint(get, "/v1/models", other.models, None, ModelList),
        Endpoint(get, "/v1/models/{model:path}", other.model, None, Model),
        Endpoint(post, "/tokenize", other.tokenize, TokenizeRequest, TokenizeReply, generates=True),
        Endpoint(
            post,
            "/detokenize",
            other.detokenize,
            DetokenizeRequest,
            DetokenizeReply,
            generates=True,
        ),
        Endpoint(post, "/abort", other.abort, AbortRequest, AbortReply),
        Endpoint(get, "/live", other.live, None, HealthReply, public=True),
        Endpoint(get, "/health", other.health, None, HealthReply, reports=True, public=True),
        Endpoint(get, "/ready", other.ready, None, HealthReply, reports=True, public=True),
        Endpoint(get, "/version", other.version, None, VersionReply, public=True),
        Endpoint(get, "/metrics", about.metrics, media="text/plain", public=True),
    ]


def build_app(service: Service) -> ASGIApp:
    """All routes behind the gate."""
    table = endpoints()
    document = specification(service, table)
    routes = [Route(each.path, each.handler, methods=[each.method]) for each in table]
    routes.append(Route("/openapi.json", about.openapi(document)))
    routes.append(Route("/docs", about.docs(document)))
    routes.append(Route("/", about.playground(playground())))
    app: ASGIApp = Router(routes, redirect_slashes=False)
    app = Gate(app, service)
    if service.config.cors_origins:
        app = Cors(app, service.config.cors_origins)
    return app
