"""The specification of this server, made from the structs that its routes really read and write."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from .. import __version__
from .endpoints import Endpoint
from .protocol.errors import ErrorReply
from .service import Service

Json = dict[str, Any]
_REF = "#/components/schemas/{name}"
_ERRORS = {
    "400": "The request asks for something impossible; `param` names the field.",
    "401": "An API key is missing or wrong.",
    "404": "There is no such model, or nothing at this address.",
    "408": "The body did not arrive in time.",
    "413": "The body is too large.",
    "415": "The body is not JSON, or it is compressed.",
    "500": "The server failed; its log has the cause.",
    "503": "Too much waits, or the engine is being loaded; `Retry-After` says when to come again.",
}


def specification(service: Service, endpoints: Sequence[Endpoint]) -> Json:
    """The whole document, OpenAPI 3.1."""
    found = [shape for each in endpoints for shape in (each.body, each.reply, each.streams)]
    shapes: list[type[Any]] = [ErrorReply, *dict.fromkeys(shape for shape in found if shape)]
    shapes.sort(key=lambda shape: shape.__name__)
    _, components = msgspec.json.schema_components(shapes, ref_template=_REF)
    for shape in shapes:
        correct(shape, components[shape.__name__], service)
    paths: Json = {}
    for each in endpoints:
        path = re.sub(r":path}", "}", each.path)
        paths.setdefault(path, {})[each.method.lower()] = operation(each, service)
    document: Json = {
        "openapi": "3.1.0",
        "info": {
            "title": "Saccade",
            "version": __version__,
            "description": "Long-context sparse-attention inference, for clients of OpenAI.",
        },
        "paths": paths,
        "components": {"schemas": components},
    }
    if service.config.api_keys:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document


def correct(shape: type[Any], schema: Json, service: Service) -> None:
    """Adds to a struct's schema what its types cannot say."""
    fields = schema.get("properties", {})
    for name in getattr(shape, "HIDDEN", ()):
        fields.pop(name, None)
    own: dict[str, Json] = getattr(shape, "SCHEMAS", {})
    fields |= own
    if "model" in fields and shape.__name__.endswith("Request"):
        fields["model"] = {"enum": [*service.names, None], "description": "A name of the model."}


def operation(each: Endpoint, service: Service) -> Json:
    """One method of one path."""
    summary = " ".join((each.handler.__doc__ or "").split())
    found: Json = {
        "summary": summary,
        "operationId": each.handler.__name__,
        "parameters": parameters(each, service),
        "responses": responses(each),
    }
    if each.body is not None:
        schema = {"$ref": _REF.format(name=each.body.__name__)}
        found["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schema}},
        }
    if each.public:
        found["security"] = []
    return found


def parameters(each: Endpoint, service: Service) -> list[Json]:
    """The request id, and what the path holds."""
    found: list[Json] = [
        {
            "name": "X-Request-Id",
            "in": "header",
            "description": "Names the request in replies and in the log.",
            "schema": {"type": "string"},
        }
    ]
    if "{model" in each.path:
        schema = {"enum": list(service.names)}
        found.append({"name": "model", "in": "path", "required": True, "schema": schema})
    return found


def responses(each: Endpoint) -> Json:
    """The replies that can come."""
    content: Json = {}
    if each.reply is not None:
        content["application/json"] = {"schema": {"$ref": _REF.format(name=each.reply.__name__)}}
    if each.media is not None:
        content[each.media] = {"schema": {"type": "string"}}
    if each.streams is not None:
        end = "; at the end [DONE]." if each.done else "."
        what = f"A {each.streams.__name__} as JSON{end}"
        event = {"data": {"type": "string", "description": what}}
        content["text/event-stream"] = {
            "schema": {"type": "object", "properties": event, "required": ["data"]}
        }
    header = {"X-Request-Id": {"schema": {"type": "string"}}}
    found: Json = {"200": {"description": "Done.", "headers": header, "content": content}}
    statuses = ["400", "404", "500"] if each.public else ["400", "401", "404", "500"]
    if each.body is not None:
        statuses += ["408", "413", "415", "503"]
    error = {"application/json": {"schema": {"$ref": _REF.format(name="ErrorReply")}}}
    for status in sorted(statuses):
        found[status] = {"description": _ERRORS[status], "content": error}
    if each.reports:
        found["503"] = {"description": "Not now.", "content": content}
    return found
