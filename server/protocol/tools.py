"""`tools` and `tool_choice`: what a model may call, and whether it must."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from .errors import ApiError
from .replies import UNSET, Unset

Tool = dict[str, Any]

MAX_TOOLS = 128
MAX_TOOLS_BYTES = 1 << 20
MAX_NAME = 256
MODES = ("none", "auto", "required")

_FUNCTION = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": MAX_NAME},
        "description": {"type": ["string", "null"]},
        "parameters": {"type": ["object", "null"]},
        "strict": {"type": ["boolean", "null"]},
    },
    "required": ["name"],
}
TOOLS_SCHEMA = {
    "anyOf": [
        {
            "type": "array",
            "maxItems": MAX_TOOLS,
            "items": {
                "type": "object",
                "properties": {"type": {"const": "function"}, "function": _FUNCTION},
                "required": ["type", "function"],
            },
        },
        {"type": "null"},
    ]
}
_NAMED = {
    "type": "object",
    "properties": {
        "type": {"const": "function"},
        "function": {
            "type": "object",
            "properties": {"name": {"type": "string"}},
            "required": ["name"],
        },
    },
    "required": ["type", "function"],
}
CHOICE_SCHEMA = {"anyOf": [{"enum": [*MODES, None]}, _NAMED]}


@dataclass(frozen=True)
class ToolUse:
    """tools: as the client sent them, for the template. forced: those of which one must be called,
    none of them where the model decides. many: whether it may call more than once.
    """

    tools: tuple[Tool, ...]
    forced: tuple[Tool, ...] = ()
    many: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        """What may be called."""
        return tuple(name_of(tool) for tool in self.tools)

    @property
    def strict(self) -> bool:
        """Whether a call must keep to a schema even where the model decides to make it."""
        return any(tool["function"].get("strict") for tool in self.tools)


def read_tools(tools: Sequence[Tool] | None, choice: Any, many: bool) -> ToolUse | None:
    """What the fields `tools` and `tool_choice` ask for; None when nothing may be called.

    ApiError naming what is wrong.
    """
    named = choice if isinstance(choice, Mapping) else None
    if named is None and choice is not None and choice not in MODES:
        raise _refusal("tool_choice", f"must be {', '.join(MODES)}, or name a function")
    given = tuple(tools or ())
    _check_tools(given)
    name = None if named is None else _chosen(named)
    if not given and (name is not None or choice == "required"):
        raise _refusal("tool_choice", "asks for a call, but there are no tools")
    if not given or choice == "none":
        return None
    if name is not None:
        forced = tuple(tool for tool in given if name_of(tool) == name)
        if not forced:
            raise _refusal("tool_choice", f"names {name[:100]!r}, which is not among the tools")
        return ToolUse(given, forced, many=False)
    return ToolUse(given, given if choice == "required" else (), many)


def name_of(tool: Tool) -> str:
    """The name of a tool that has been checked."""
    name: str = tool["function"]["name"]
    return name


def _check_tools(tools: Sequence[Tool]) -> None:
    if len(tools) > MAX_TOOLS:
        raise _refusal("tools", f"may hold at most {MAX_TOOLS} tools, got {len(tools)}")
    if tools and len(msgspec.json.encode(tools)) > MAX_TOOLS_BYTES:
        raise _refusal("tools", f"may have at most {MAX_TOOLS_BYTES} bytes of JSON")
    seen: set[str] = set()
    for index, tool in enumerate(tools):
        name = _check_tool(f"tools[{index}]", tool)
        if name in seen:
            raise _refusal(f"tools[{index}].function.name", f"{name[:100]!r} is there twice")
        seen.add(name)


def _check_tool(where: str, tool: Tool) -> str:
    if tool.get("type") != "function":
        raise _refusal(f"{where}.type", "must be 'function': this server has no tools of its own")
    function = tool.get("function")
    if not isinstance(function, Mapping):
        raise _refusal(f"{where}.function", "must be an object")
    name = function.get("name")
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME:
        message = f"must be a text of 1 to {MAX_NAME} characters"
        raise _refusal(f"{where}.function.name", message)
    for key, kinds in (("description", str), ("parameters", Mapping), ("strict", bool)):
        if not isinstance(function.get(key), kinds | None):
            what = {"description": "a text", "parameters": "a JSON schema", "strict": "a boolean"}
            raise _refusal(f"{where}.function.{key}", f"must be {what[key]}")
    return name


def _chosen(choice: Mapping[str, Any]) -> str:
    function = choice.get("function")
    name = function.get("name") if isinstance(function, Mapping) else None
    if choice.get("type") != "function" or not isinstance(name, str):
        what = "must be {'type': 'function', 'function': {'name': ...}}"
        raise _refusal("tool_choice", what)
    return name


def _refusal(param: str, message: str) -> ApiError:
    return ApiError(400, f"{param} {message}", param, "invalid_value")


class FunctionCall(msgspec.Struct):
    """What is called; arguments: JSON, as the model wrote it."""

    name: str
    arguments: str


class ToolCallReply(msgspec.Struct, kw_only=True):
    """A call in an answer."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class FunctionDelta(msgspec.Struct, omit_defaults=True):
    """The name comes once, before any arguments."""

    name: str | Unset = UNSET
    arguments: str | Unset = UNSET


class ToolCallDelta(msgspec.Struct, kw_only=True):
    """News of the call with this index; id, type and name come in its first delta."""

    index: int
    id: str | Unset = UNSET
    type: Literal["function"] | Unset = UNSET
    function: FunctionDelta
