"""`tool_choice` "required" and named: a grammar of the model's own format, so that the answer is a
call (or several) of the tools given, with arguments that their schemas accept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ...engine.errors import RequestError
from ...engine.structure import Structure
from . import hermes, mistral

MAX_CALLS = 16
# As in JSON of its own (engine/grammar.py): no endless whitespace.
_GUIDANCE = {"whitespace_pattern": r"\x20|\x0A[\x20\x09]{0,32}"}
_NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


def forced_calls(format: str, tools: Sequence[Mapping[str, Any]], many: bool) -> Structure:
    """The structure of an answer that calls.

    format: a key of PARSERS, which then reads the answer. tools: as in OpenAI's API, at least one
    (for a named choice: that one). many: up to MAX_CALLS calls, else exactly one. Raises
    RequestError for a tool without a name or whose parameters are no schema.
    """

    def several(call: str, between: str) -> str:
        return f"{call} ({between} {call}){{0,{MAX_CALLS - 1}}}" if many else call

    key = "parameters" if format == "llama3_json" else "arguments"
    rules = [rule for i, tool in enumerate(tools) for rule in _rules(i, tool, key)]
    rules.append("call: " + " | ".join(f"call_{i}" for i in range(len(tools))))
    start, markers = {
        "hermes": (several("tagged", '"\\n"'), (hermes.START, hermes.END)),
        "llama3_json": (several("call", '"; "'), ()),
        "mistral": ('mark_0 "[" ' + several("call", '", "') + ' "]"', (mistral.MARKER,)),
    }[format]
    if format == "hermes":
        rules.append('tagged: mark_0 "\\n" call "\\n" mark_1')
    return Structure.grammar("\n".join([f"start: {start}", *rules]), markers)


def _rules(index: int, tool: Mapping[str, Any], key: str) -> list[str]:
    function = tool.get("function")
    name = function.get("name") if isinstance(function, Mapping) else None
    where = f"tools[{index}].function"
    if not isinstance(function, Mapping) or not isinstance(name, str) or not name:
        raise RequestError(f"{where}.name must be a text that is not empty", f"{where}.name")
    schema = function.get("parameters")
    if schema is None:
        schema = _NO_ARGUMENTS
    if not isinstance(schema, Mapping):
        raise RequestError(f"{where}.parameters must be a JSON schema", f"{where}.parameters")
    if schema.get("type") != "object" and "$ref" not in schema:
        schema = {**schema, "type": "object"}
    before = f'{{"name": {json.dumps(name, ensure_ascii=False)}, "{key}": '
    literal = json.dumps(before, ensure_ascii=False)
    body = json.dumps({**schema, "x-guidance": _GUIDANCE}, ensure_ascii=False)
    return [f'call_{index}: {literal} args_{index} "}}"', f"args_{index}: %json {body}"]
