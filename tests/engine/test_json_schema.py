"""JSON schemas as the compiler of grammars can keep to them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saccade.engine.errors import RequestError
from saccade.engine.json_schema import fitted
from saccade.engine.structure import Structure

from .test_structure import BYTES, COMPILER, END

LIMIT = 2**63 - 1


def accepts(schema: dict[str, Any], text: str) -> bool:
    state = COMPILER.compile(Structure.json_schema(schema)).copy()
    for token in [*BYTES.encode_plain(text), END]:
        if not state.allowed(BYTES.vocab_size)[token]:
            return False
        state.advance(token)
    return True


def test_what_is_small_stays_as_it_is() -> None:
    schema = {
        "type": "object",
        "properties": {
            "format": {"type": "string", "format": "date"},
            "maximum": {"maximum": 2**53, "exclusiveMinimum": 1 - 2**53, "default": 2**70},
            "const": {"enum": [1, 0.1, "a", 2**53], "examples": [2**60]},
        },
        "anyOf": [{"minimum": True}, {"multipleOf": 0.5}],
        "x-guidance": {"whitespace_pattern": " "},
    }
    assert fitted(schema) == schema


def test_formats_that_json_schema_does_not_know_say_nothing() -> None:
    assert fitted({"items": {"type": "string", "format": "binary"}}) == {
        "items": {"type": "string"}
    }
    assert accepts({"type": "string", "format": "password"}, '"x"')
    with pytest.raises(RequestError, match="regex"):  # it does know this one
        accepts({"type": "string", "format": "regex"}, '"x"')


@pytest.mark.parametrize(
    "schema",
    [
        {"const": 2**53 + 1},
        {"enum": ["a", -(2**60)]},
        {"properties": {"a": {"items": [{"const": {"b": [2**64]}}]}}},
        {"minimum": 2**64},
        {"exclusiveMinimum": LIMIT},
        {"maximum": -(2**63)},
    ],
)
def test_integers_that_would_be_written_otherwise_are_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="json_schema") as caught:
        fitted(schema)
    assert caught.value.param == "structure"


@given(st.booleans(), st.integers(2**53, LIMIT - 1), st.sampled_from([1, -1]))
def test_bounds_move_within_and_not_far(exclusive: bool, bound: int, sign: int) -> None:
    side = "Maximum" if sign > 0 else "Minimum"
    found = fitted({f"exclusive{side}" if exclusive else side.lower(): sign * bound})
    own = sign * found[side.lower()]
    assert len(found) == 1 and float(own) == own
    assert bound - 1 - 1024 <= own <= bound - exclusive


@pytest.mark.parametrize("exclusive", [False, True])
def test_the_range_of_large_identifiers(exclusive: bool) -> None:
    low, high = 2**53 + 1, 2**53 + 9
    schema: dict[str, Any] = {"type": "integer", "minimum": low, "maximum": high}
    if exclusive:
        schema = {"type": "integer", "exclusiveMinimum": low - 1, "exclusiveMaximum": high + 1}
    allowed = [value for value in range(low - 3, high + 4) if accepts(schema, str(value))]
    assert allowed == list(range(low + 1, high))
    assert accepts({"type": "integer", "minimum": 0, "maximum": LIMIT}, str(LIMIT))
    assert not accepts({"type": "integer", "minimum": 0, "maximum": LIMIT}, str(LIMIT + 1))
    assert accepts({"type": "integer", "minimum": -(2**63)}, "-5")
