"""The items of /v1/responses as the messages of a chat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..messages import joined
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


def read_input(items: str | Sequence[Any], instructions: str | None) -> Input:
    """The messages that a chat template reads. ApiError naming the item at fault."""
    found = Input()
    if instructions is not None:
        found.add("instructions", {"role": "system", "content": instructions}, content="")
    if isinstance(items, str):
        found.add("input", {"role": "user", "content": items}, content="")
        return found
    if not items:
        raise _refusal("input", "must hold at least one item")
    for index, item in enumerate(items):
        found.read(f"input[{index}]", item)
    return found


class Input:
    """What a conversation holds. What an assistant thought, said and called in a row is one of its
    `messages`. places: of a message, or a part of it -> where the client has it, the end of which
    is the same for both.
    """

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.places: dict[str, str] = {}
        self._calls: set[str] = set()

    def add(self, where: str, message: Message, **own: str) -> None:
        """A message from there; own: of its fields, what follows `where` in the client's name."""
        self.messages.append(message)
        self._note("", where)
        for name, rest in own.items():
            self._note(f".{name}", where + rest)

    def read(self, where: str, item: Any) -> None:
        """Adds an item. ApiError."""
        if not isinstance(item, Mapping):
            raise _refusal(where, "must be an object")
        kind = item.get("type", "message")
        readers = {
            "message": self._read_message,
            "reasoning": self._read_reasoning,
            "function_call": self._read_call,
            "function_call_output": self._read_output,
        }
        if not isinstance(kind, str) or kind not in readers:
            what = "message, function_call, function_call_output or reasoning"
            raise _refusal(f"{where}.type", f"must be {what}: got {str(kind)[:100]!r}")
        readers[kind](where, item)

    @property
    def _last(self) -> Message | None:
        """The assistant's message if it is its turn."""
        last = self.messages[-1] if self.messages else {}
        return last if last.get("role") == "assistant" else None

    def _note(self, part: str, where: str) -> None:
        self.places[f"messages[{len(self.messages) - 1}]{part}"] = where

    def _read_message(self, where: str, item: Mapping[str, Any]) -> None:
        role = _text(where, item, "role")
        if role not in _ROLES:
            what = f"must be {', '.join(_ROLES[:-1])} or {_ROLES[-1]}"
            raise _refusal(f"{where}.role", f"{what}: got {role[:100]!r}")
        content = _content(f"{where}.content", item.get("content"))
        last = self._last
        if role == "assistant" and last is not None and last.get("content") is None:
            last["content"] = content  # it has thought or called before it spoke
            self._note(".content", f"{where}.content")
        else:
            self.add(where, {"role": role, "content": content})

    def _read_reasoning(self, where: str, item: Mapping[str, Any]) -> None:
        name = "content" if item.get("content") else "summary"
        parts = item.get(name) or []
        text = "" if not parts else joined(_content(f"{where}.{name}", parts))
        message = {"role": "assistant", "content": None, "reasoning_content": text}
        self.add(where, message, reasoning_content=f".{name}")

    def _read_call(self, where: str, item: Mapping[str, Any]) -> None:
        function = {name: _text(where, item, name) for name in ("name", "arguments")}
        id = _text(where, item, "call_id")
        last = self._last
        if last is None:
            last = {"role": "assistant", "content": None}
            self.add(where, last)
        calls = last.setdefault("tool_calls", [])
        call = f".tool_calls[{len(calls)}]"
        for part, own in (("", ""), (".function", ""), (".id", ".call_id")):
            self._note(call + part, where + own)
        calls.append({"id": id, "type": "function", "function": function})
        self._calls.add(id)

    def _read_output(self, where: str, item: Mapping[str, Any]) -> None:
        content = _content(f"{where}.output", item.get("output"))
        id = _text(where, item, "call_id")
        if id not in self._calls:
            message = f"must be the id of a call in an item before it, got {id[:100]!r}"
            raise _refusal(f"{where}.call_id", message)
        answer = {"role": "tool", "tool_call_id": id, "content": content}
        self.add(where, answer, content=".output", tool_call_id=".call_id")


def place(param: str, places: Mapping[str, str]) -> str:
    """Where the client has a field of a chat; its name in chats, if `places` do not know it."""
    part = param
    while part and part not in places:
        part = part[: max(part.rfind("."), part.rfind("["), 0)]
    return places.get(part, "") + param[len(part) :]


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
