"""JSON schemas as the compiler of grammars can keep to them, without a change in what they mean.

llguidance reads numbers as 64-bit floats and refuses formats that it does not know.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .errors import RequestError

# Integers up to this size are floats of 64 bits too; the largest that llguidance writes.
_EXACT = 1 << 53
_LARGEST = (1 << 63) - 1
# Formats of JSON Schema 2020-12. Any other is an annotation, which says nothing about the text.
_FORMATS = frozenset(
    "date-time date time duration email idn-email hostname idn-hostname ipv4 ipv6 uri "
    "uri-reference iri iri-reference uuid uri-template json-pointer relative-json-pointer "
    "regex".split()
)
_OF_SCHEMAS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_OF_VALUES = ("const", "enum", "default", "examples", "x-guidance")


def fitted(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A schema that accepts no more than this one does, and no less but for numbers beyond 2^53.

    There, bounds move to the nearest float within. RequestError for a value of `const` or `enum`
    of that size, which would be written with other digits, and for a bound beyond 64 bits.
    """
    found = {key: _entry(key, value) for key, value in schema.items()}
    if isinstance(found.get("format"), str) and found["format"] not in _FORMATS:
        del found["format"]
    _move_bounds(found)
    return found


def _entry(key: str, value: Any) -> Any:
    if key in _OF_VALUES:
        if key in ("const", "enum"):
            _check_exact(value)
        return value
    if key in _OF_SCHEMAS and isinstance(value, Mapping):
        return {name: _inner(each) for name, each in value.items()}
    return _inner(value)


def _inner(value: Any) -> Any:
    if isinstance(value, Mapping):
        return fitted(value)
    return [_inner(each) for each in value] if isinstance(value, list) else value


def _check_exact(value: Any) -> None:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            _check_exact(each)
    elif _is_large(value) and abs(value) != _EXACT:
        raise _refusal(f"{value} cannot be kept to exactly: integers go up to 2^53 there")


def _is_large(value: Any) -> bool:
    return type(value) is int and abs(value) >= _EXACT


def _move_bounds(schema: dict[str, Any]) -> None:
    """Inclusive bounds that are floats as well; what is exclusive becomes inclusive first."""
    for name, exclusive, sign in (
        ("maximum", "exclusiveMaximum", 1),
        ("minimum", "exclusiveMinimum", -1),
    ):
        known = [sign * schema[name]] if _is_large(schema.get(name)) else []
        if _is_large(schema.get(exclusive)):
            known.append(sign * schema.pop(exclusive) - 1)
            if _is_number(schema.get(name)):
                known.append(sign * schema[name])
        if known:
            schema[name] = sign * _below(min(known), name)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _below(most: float, name: str) -> int:
    """The largest integer of at most `most` that is a float."""
    if most >= _LARGEST and name == "maximum":
        return _LARGEST  # what it is read as is written at most
    if most <= -_LARGEST:
        raise _refusal(f"{name} lies beyond the integers of 64 bits")
    found = float(min(most, _LARGEST - 1023))
    return int(found if found <= most else math.nextafter(found, -math.inf))


def _refusal(message: str) -> RequestError:
    return RequestError(f"structure: json_schema: {message}", "structure")
