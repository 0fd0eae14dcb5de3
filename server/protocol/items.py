"""The items of /v1/responses as the messages of a chat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .errors import ApiError

Message = dict[str, Any]

_TEXT = {"type": "string"}
_PARTS = ("input_text", "output_text", "text", "reasoning_text", "summary_text")
_ROLES = ("user", "assistant", "system", "developer")
_PART = {
    "type": "object",
    "anyOf": [
        {"properties": {"type": {"enum": _PARTS}, "text": _TEXT}, "required": ["type", "text"]},
        {
            "properties": {"type": {"const": "refusal"}, "refusal": _TEXT},
            "required": ["type", "refusal"],
        },
    ],
}
_CONTENT = {"anyOf": [_TEXT, {"type": "array", "items": _PART, "minItems": 1}]}


def _item(kind: str, required: list[str], **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"type": {"const": kind}, **properties},
        "required": required,
    }


_ROLE = {"enum": _ROLES}
_CALL = {"call_id": _TEXT, "name": _TEXT, "arguments": _TEXT}
ITEMS_SCHEMA = {
    "anyOf": [
        _TEXT,
        {
            "type": "array",
            "minItems": 1,
            "items": {
                "anyOf": [
                    _item("message", ["role", "content"], role=_ROLE, content=_CONTENT),
                    _item("function_call", ["type", *_CALL], **_CALL),
                    _item(
                        "function_call_output",
                        ["type", "call_id", "output"],
                        call_id=_TEXT,
                        output=_CONTENT,
                    ),
                    _item("reasoning", ["type"]),
                ]
            },
        },
    ]
}


def read_input(items: str | Sequence[Any], instructions: str | None) -> list[Message]:
    """The messages that a chat template reads. ApiError naming the item at fault.

    What an assistant thought, said and called in a row is one message.
    """
    messages: list[Message] = []
    if instructions is not None:
        messages.append({"role": "system", "content": instructions})
    if isinstance(items, str):
        return [*messages, {"role": "user", "content": items}]
    if not items:
        raise _refusal("input", "must hold at least one item")
    first, known = len(messages), set[str]()
    for index, item in enumerate(items):
        where = f"input[{index}]"
        if not isinstance(item, Mapping):
            raise _refusal(where, "must be an object")
        kind = item.get("type", "message")
        if kind == "message":
            _add_message(where, messages, item)
        elif kind in ("function_call", "reasoning"):
            _add_to_assistant(where, messages, item, kind, first)
            known |= {str(item.get("call_id"))}
        elif kind == "function_call_output":
            content = _content(f"{where}.output", item.get("output"))
            id = _text(where, item, "call_id")
            if id not in known:
                message = f"must be the id of a call in an item before it, got {id[:100]!r}"
                raise _refusal(f"{where}.call_id", message)
            messages.append({"role": "tool", "tool_call_id": id, "content": content})
        else:
            what = "message, function_call, function_call_output or reasoning"
            raise _refusal(f"{where}.type", f"must be {what}: got {str(kind)[:100]!r}")
    return messages


def _add_message(where: str, messages: list[Message], item: Mapping[str, Any]) -> None:
    role = _text(where, item, "role")
    if role not in _ROLES:
        what = f"must be {', '.join(_ROLES[:-1])} or {_ROLES[-1]}"
        raise _refusal(f"{where}.role", f"{what}: got {role[:100]!r}")
    content = _content(f"{where}.content", item.get("content"))
    last = messages[-1] if messages else {}
    if role == "assistant" and last.get("role") == "assistant" and last.get("content") is None:
        last["content"] = content  # it has thought or called before it spoke
    else:
        messages.append({"role": role, "content": content})


def _add_to_assistant(
    where: str, messages: list[Message], item: Mapping[str, Any], kind: str, first: int
) -> None:
    goes_on = len(messages) > first and messages[-1]["role"] == "assistant"
    if kind == "reasoning" or not goes_on:
        messages.append({"role": "assistant", "content": None})
    if kind == "reasoning":
        parts = item.get("content") or item.get("summary") or []
        text = "" if not parts else _joined(_content(f"{where}.content", parts))
        messages[-1]["reasoning_content"] = text
        return
    function = {name: _text(where, item, name) for name in ("name", "arguments")}
    call = {"id": _text(where, item, "call_id"), "type": "function", "function": function}
    messages[-1].setdefault("tool_calls", []).append(call)


def _content(where: str, content: Any) -> str | list[Message]:
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple) or not content:
        raise _refusal(where, "must be a text or a list of at least one text part")
    return [_part(f"{where}[{index}]", part) for index, part in enumerate(content)]


def _part(where: str, part: Any) -> Message:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "refusal":
        return {"type": "text", "text": _text(where, part, "refusal")}
    if kind not in _PARTS:
        got = f"got {str(kind)[:100]!r}"
        raise _refusal(where, f"must be of type input_text: this model reads text only, {got}")
    return {"type": "text", "text": _text(where, part, "text")}


def _joined(content: str | list[Message]) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content)


def _text(where: str, item: Mapping[str, Any], name: str) -> str:
    found = item.get(name)
    if not isinstance(found, str):
        raise _refusal(f"{where}.{name}", "must be a text")
    return found


def read_tool(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool as chats have it: there its fields lie a level deeper."""
    if tool.get("type") != "function":
        return tool  # it is refused there
    return {"type": "function", "function": {k: v for k, v in tool.items() if k != "type"}}


def read_tool_choice(choice: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
    """A choice as chats have it. ApiError."""
    if not isinstance(choice, dict):
        return choice
    name = choice.get("name")
    if choice.get("type") != "function" or not isinstance(name, str):
        raise _refusal("tool_choice", "must be {'type': 'function', 'name': ...}")
    return {"type": "function", "function": {"name": name}}


def _refusal(param: str, message: str) -> ApiError:
    return ApiError(400, f"{param} {message}", param, "invalid_value")
