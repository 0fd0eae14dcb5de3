"""The form of an answer: OpenAI's `response_format`, vLLM's `structured_outputs`."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from ...engine.structure import Structure
from .errors import KNOWN_FORMS, ApiError

_TYPES = ["text", "json_object", "json_schema"]


class JsonSchemaFormat(msgspec.Struct):
    """A schema; the answer always keeps to it, so that strict changes nothing."""

    schema: dict[str, Any]
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct):
    """type: text, json_object, or json_schema with `json_schema`."""

    type: Annotated[str, Meta(extra_json_schema={"enum": _TYPES})]
    json_schema: JsonSchemaFormat | None = None

    def structure(self) -> Structure | None:
        """What it means for the sampler. ApiError, RequestError."""
        if self.type not in _TYPES:
            message = f"response_format.type must be one of {', '.join(_TYPES)}"
            raise ApiError(400, message, "response_format.type", "invalid_value")
        if self.type == "json_schema" and self.json_schema is None:
            message = "response_format.json_schema is missing: it holds the schema"
            raise ApiError(400, message, "response_format.json_schema", "invalid_value")
        if self.type != "json_schema" and self.json_schema is not None:
            message = "response_format.json_schema belongs to the type json_schema, and to no other"
            raise ApiError(400, message, "response_format.json_schema", "invalid_value")
        if self.json_schema is not None:
            return Structure.json_schema(self.json_schema.schema)
        return Structure.json_object() if self.type == "json_object" else None


class StructuredOutputs(msgspec.Struct, forbid_unknown_fields=True):
    """One of: a JSON schema, a regular expression, texts to choose from, a Lark grammar.

    A field that is not known here could be a form, which must not be passed over.
    """

    json: dict[str, Any] | str | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None

    def structure(self) -> Structure:
        """What it means for the sampler. ApiError, RequestError."""
        names = [
            name for name in self.__struct_fields__ if getattr(self, name) not in (None, False)
        ]
        if len(names) != 1:
            got = " and ".join(names) or "none"
            message = f"structured_outputs must ask for one form of {KNOWN_FORMS}, got {got}"
            raise ApiError(400, message, "structured_outputs", "invalid_value")
        if self.json_object:
            return Structure.json_object()
        makers = {"json": Structure.json_schema, "regex": Structure.regex}
        makers |= {"choice": Structure.choice, "grammar": Structure.grammar}
        made: Structure = makers[names[0]](getattr(self, names[0]))
        return made
