"""Grammars of the models' own formats of calls.

`tool_choice` "required" and named: the answer is a call (or several) of the tools given, with
arguments that their schemas accept. "auto" with a strict tool: the answer is free, but where it
begins a call, that call is one of these.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ...engine.checks import shown
from ...engine.errors import RequestError
from ...engine.json_schema import fitted
from ...engine.structure import Structure
from . import hermes, llama3, mistral
from .json_call import KEYS

MAX_CALLS = 16
# As in JSON of its own (engine/grammar.py): no endless whitespace.
_GUIDANCE = {"whitespace_pattern": r"\x20|\x0A[\x20\x09]{0,32}"}
_NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
_ANY_ARGUMENTS: dict[str, Any] = {"type": "object"}
_TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
_SPACES = r"[\x20\x09\x0D\x0A]*"


def forced_calls(format: str, tools: Sequence[Mapping[str, Any]], many: bool) -> Structure:
    """The structure of an answer that calls.

    format: a key of PARSERS, which then reads the answer. tools: as in OpenAI's API, at least one
    (for a named choice: that one). many: up to MAX_CALLS calls, else exactly one. Raises
    RequestError for a tool without a name or whose parameters are no schema.
    """
    schemas = [_schema(index, tool) for index, tool in enumerate(tools)]
    start, markers, rules = {
        "hermes": (_several("tagged", '"\\n"', many), (hermes.START, hermes.END), [_TAGGED]),
        "llama3_json": (_several("call", '"; "', many), (), []),
        "mistral": (f'mark_0 "[" {_several("call", COMMA, many)} "]"', (mistral.MARKER,), []),
    }[format]
    rules = [f"start: {start}", *rules, *_calls(_names(tools), _key(format)), *_arguments(schemas)]
    return Structure.grammar("\n".join(rules), markers)


def guarded_calls(format: str, tools: Sequence[Mapping[str, Any]], many: bool) -> Structure:
    """The structure of an answer that may call: any text, except that what its parser would take
    for a call is one of these tools'. A tool's arguments are any object unless it is strict.

    Parameters and errors as of `forced_calls`; many: False: at most one call.
    """
    schemas = [
        _schema(index, tool) if tool["function"].get("strict") else _ANY_ARGUMENTS
        for index, tool in enumerate(tools)
    ]
    start, markers, rules = {
        "hermes": _guarded_hermes,
        "llama3_json": _guarded_llama3,
        "mistral": _guarded_mistral,
    }[format](_names(tools), many)
    return Structure.grammar("\n".join([f"start: {start}", *rules, *_arguments(schemas)]), markers)


Guarded = tuple[str, tuple[str, ...], list[str]]  # the first rule, the markers, further rules
COMMA, SEMICOLON = '", "', '";"'
_TAGGED = 'tagged: mark_0 "\\n" call "\\n" mark_1'


def _guarded_hermes(names: Sequence[str], many: bool) -> Guarded:
    calls = f'(upto_0 "\\n" call "\\n" mark_1){{0,{MAX_CALLS if many else 1}}}'
    return f"{calls} rest?", (hermes.START, hermes.END), _calls(names, _key("hermes"))


def _guarded_mistral(names: Sequence[str], many: bool) -> Guarded:
    """Either of its forms; the newer one has the marker before each call."""
    listed = f'" "? "[" {_several("call", COMMA, many)} "]"'
    rules = [f"named_{i}: {_quoted(name)} mark_1 args_{i}" for i, name in enumerate(names)]
    rules.append(_either("named", len(names)))
    start = f"(upto_0 ({listed} | {_several('named', 'mark_0', many)}))? rest?"
    markers = (mistral.MARKER, mistral.ARGS)
    return start, markers, [*rules, *_calls(names, _key("mistral"))]


def _guarded_llama3(names: Sequence[str], many: bool) -> Guarded:
    """A call has no marker but its first key: other JSON may be written as long as it begins with
    a key that no call has. White space and call are one terminal, beside the text that could begin
    in the same way.
    """
    keys = "|".join(map(_pattern, KEYS))
    called = f'({_pattern(llama3.TAG)}|\\{{{_SPACES}"({keys})")'
    rules = [f"TEXT: /(?s:.+)/ & ~/{_SPACES}{called}(?s:.*)/"]
    for i, name in enumerate(names):
        rules.append(f"OPEN_{i}: /{_SPACES}{_pattern(_opening(name, _key('llama3_json')))}/")
        rules.append(f'call_{i}: OPEN_{i} args_{i} "}}"')
    rules.append(_either("call", len(names)))
    return f"TEXT? | mark_0? {_several('call', SEMICOLON, many)}", (llama3.TAG,), rules


def _several(call: str, between: str, many: bool) -> str:
    return f"{call} ({between} {call}){{0,{MAX_CALLS - 1}}}" if many else call


def _key(format: str) -> str:
    return "parameters" if format == "llama3_json" else "arguments"


def _opening(name: str, key: str) -> str:
    return f'{{"name": {json.dumps(name, ensure_ascii=False)}, "{key}": '


def _calls(names: Sequence[str], key: str) -> list[str]:
    rules = [
        f'call_{i}: {_quoted(_opening(name, key))} args_{i} "}}"' for i, name in enumerate(names)
    ]
    return [*rules, _either("call", len(names))]


def _either(rule: str, count: int) -> str:
    return f"{rule}: " + " | ".join(f"{rule}_{i}" for i in range(count))


def _arguments(schemas: Sequence[Mapping[str, Any]]) -> list[str]:
    bodies = [{**schema, "x-guidance": _GUIDANCE} for schema in schemas]
    return [
        f"args_{i}: %json {json.dumps(body, ensure_ascii=False)}" for i, body in enumerate(bodies)
    ]


_AT_LINE = re.compile(r"at (\d+)\(\d+\): (.*)")
_ARGUMENTS = re.compile(r"args_(\d+): ")


def blame(message: str, structure: Structure, names: Sequence[str]) -> str | None:
    """What is wrong with the parameters of one tool, where the engine refuses a structure of the
    above; None where it is no tool's fault. names: of the tools that it was made of.
    """
    found = _AT_LINE.search(message)
    other = structure.otherwise
    if found is None or (other is not None and other.kind == "grammar"):
        return None
    lines = structure.text.splitlines()[: int(found[1])]
    rule = _ARGUMENTS.match(lines[-1])
    if rule is None:
        return None
    return f"tools: the parameters of {shown(names[int(rule[1])])} cannot be used: {found[2]}"


def _names(tools: Sequence[Mapping[str, Any]]) -> list[str]:
    names = []
    for index, tool in enumerate(tools):
        function = tool.get("function")
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(name, str) or not name:
            where = f"tools[{index}].function.name"
            raise RequestError(f"{where} must be a text that is not empty", where)
        names.append(name)
    return names


def _schema(index: int, tool: Mapping[str, Any]) -> Mapping[str, Any]:
    function = tool.get("function")
    function = function if isinstance(function, Mapping) else {}
    schema = function.get("parameters")
    if schema is None:
        return _NO_ARGUMENTS
    if not isinstance(schema, Mapping):
        where = f"tools[{index}].function.parameters"
        raise RequestError(f"{where} must be a JSON schema", where)
    kind = schema.get("type", "object")
    kinds = kind if isinstance(kind, list) else [kind]
    if "object" not in kinds or any(each not in _TYPES for each in kinds):
        shown_type = shown(kind if isinstance(kind, str) else json.dumps(kind))
        whose = f"the parameters of {shown(function.get('name'))}"
        message = f"tools: {whose} must be a schema of an object, not of type {shown_type}"
        raise RequestError(message, "tools")
    whole = schema if "$ref" in schema else {**schema, "type": "object"}
    try:
        return fitted(whole)
    except RequestError as error:
        reason = str(error).removeprefix("structure: json_schema: ")
        where = f"tools[{index}].function.parameters"
        raise RequestError(f"{where}: {reason}", where) from None


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _pattern(text: str) -> str:
    """A regular expression for a text alone."""
    plain = (char.isascii() and char.isalnum() for char in text)
    return "".join(c if p else f"\\x{{{ord(c):X}}}" for c, p in zip(text, plain, strict=True))
