"""The form of an answer: OpenAI's `response_format`, vLLM's `structured_outputs`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

from ...engine.structure import Structure
from .errors import KNOWN_FORMS, ApiError
from .unserved import check_neutral

_TYPES = ["text", "json_object", "json_schema"]
# Of vLLM's options of a form: values that change nothing, and why any other is refused.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "disable_fallback": (None, False, True),
    "disable_any_whitespace": (None, False),
    "disable_additional_properties": (None, False),
    "whitespace_pattern": (None,),
    "structural_tag": (None,),
    "backend": (None,),
    "backend_was_auto": (None, False),
}
_WHY = {
    "disable_fallback": "it is true, false or null, and there is nothing to fall back to",
    "disable_any_whitespace": "the white space of JSON is not to be chosen on this server",
    "disable_additional_properties": 'write "additionalProperties": false into the schema',
    "whitespace_pattern": "the white space of JSON is not to be chosen on this server",
    "structural_tag": f"the forms of this server are {KNOWN_FORMS}",
    "backend": "it is the server's own affair",
    "backend_was_auto": "it is the server's own affair",
}


def _only(*values: Any) -> Meta:
    return Meta(extra_json_schema={"enum": list(values)})


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
    """One of: a JSON schema, a regular expression, texts to choose from, a grammar.

    grammar: in Lark from its rule `start`, or in GBNF (`name ::= ...`) from its rule `root`.
    A field that is not known here could be a form, which must not be passed over. vLLM's options
    are known, because its clients send all of them, and refused where they would change something.
    """

    FORMS: ClassVar[tuple[str, ...]] = tuple(KNOWN_FORMS.split(", "))

    json: dict[str, Any] | str | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    disable_fallback: Annotated[Any, _only(None, False, True)] = None
    disable_any_whitespace: Annotated[Any, _only(None, False)] = None
    disable_additional_properties: Annotated[Any, _only(None, False)] = None
    whitespace_pattern: Annotated[Any, _only(None)] = None
    structural_tag: Annotated[Any, _only(None)] = None
    # What vLLM keeps in the same object for itself, and dataclasses.asdict writes too.
    backend: Annotated[Any, _only(None)] = msgspec.field(default=None, name="_backend")
    backend_was_auto: Annotated[Any, _only(None, False)] = msgspec.field(
        default=None, name="_backend_was_auto"
    )

    def check_options(self) -> None:
        """Refuses an option that would change something. ApiError."""
        encoded = zip(self.__struct_fields__, self.__struct_encode_fields__, strict=True)
        params = {name: f"structured_outputs.{own}" for name, own in encoded}
        why = {
            name: f"{params[name]} is not supported by this server: {reason}"
            for name, reason in _WHY.items()
        }
        check_neutral(self, _NEUTRAL, why, params)

    def structure(self) -> Structure:
        """What it means for the sampler. ApiError, RequestError."""
        self.check_options()
        names = [name for name in self.FORMS if getattr(self, name) not in (None, False)]
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
