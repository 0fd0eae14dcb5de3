"""Chat messages as clients send them, checked and fitted to what a template can read.

Templates differ in ways that no checkpoint declares: some want a message's content as a text, some
as a list of parts; some want a call's arguments as an object, some as JSON text. `Traits` finds out
by rendering small messages once.

A call that max_tokens cut off has arguments that are no JSON object. In a history it stands as the
model wrote it, in the place of the object; a template that reads the entries of the object one by
one has no place for it, and the call is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..engine.checks import shown
from ..engine.errors import RequestError

Message = dict[str, Any]


class Probe(Protocol):
    """Renders small messages; None where the template refuses them."""

    def __call__(self, messages: list[Message], tools: list[Message] | None = None) -> str | None:
        """The text."""
        ...


_TEXT_PARTS = {"text": "text", "refusal": "refusal"}  # type of a part -> the key of its text
# Names under which clients and templates know an assistant's reasoning; templates read the first.
_REASONING = ("reasoning_content", "thinking", "reasoning")
_WORD, _KEY = "saccadeword", "saccadekey"


class Verbatim:
    """A text that stands in a prompt as it is, where a template writes JSON too."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __str__(self) -> str:
        return self._text


@dataclass(frozen=True)
class Traits:
    """What a template reads.

    texts, parts: content as a text, as a list of parts. none: content None of a message with tool
    calls leaves no "None" in the prompt. objects: arguments of calls as objects, not as JSON text.
    cut: of calls that were cut off too, as they are.
    several: a message may hold several calls. tools: it lists the tools it is given. developer: it
    knows the role "developer".
    """

    texts: bool = True
    parts: bool = False
    none: bool = True
    objects: bool = True
    cut: bool = True
    several: bool = True
    tools: bool = False
    developer: bool = False

    @classmethod
    def of(cls, probe: Probe, source: str) -> Traits:
        """By rendering messages with the template of this `source`."""
        texts = _reads(probe([_user(_WORD)]))
        parts = _reads(probe([_user([{"type": "text", "text": _WORD}])]))
        called = probe(_call({_KEY: "x"}, ""))
        written = probe(_call(json.dumps({_KEY: "x"}), ""))
        quoted = f'"{_KEY}"'
        objects = quoted in (called or "") or quoted not in (written or "")
        shows = any(_KEY in (each or "") for each in (called, written))
        part = f'{{"{_KEY}": "{_WORD}'
        cut = not shows or part in (probe(_call(Verbatim(part) if objects else part, "")) or "")
        arguments = {_KEY: "x"} if objects else json.dumps({_KEY: "x"})
        silent = probe(_call(arguments, None))
        usable = silent is not None and "None" not in silent
        unread = called is None and written is None
        several = unread or probe(_call(arguments, "", count=2)) is not None
        tools = _reads(probe([_user("x")], [_tool(_WORD)]))
        knows = "developer" in source
        none = usable or unread
        return cls(texts or not parts, parts, none, objects, cut, several, tools, knows)


def _user(content: Any) -> Message:
    return {"role": "user", "content": content}


def _call(arguments: Any, content: str | None, count: int = 1) -> list[Message]:
    function = {"name": "f", "arguments": arguments}
    calls = [
        {"id": f"call0000{number}", "type": "function", "function": function}
        for number in range(count)
    ]
    return [_user("x"), {"role": "assistant", "content": content, "tool_calls": calls}]


def _reads(rendered: str | None) -> bool:
    """Whether the word is there, and not as Python writes a list."""
    found = rendered or ""
    return _WORD in found and "'text'" not in found and '"text"' not in found


def _tool(name: str) -> Message:
    empty = {"type": "object", "properties": {}}
    function = {"name": name, "description": "x", "parameters": empty}
    return {"type": "function", "function": function}


def read_messages(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """A copy, checked: roles are texts, content is text, arguments of calls are objects; Verbatim,
    where their text holds none.

    Null entries besides `content` count as absent. RequestError naming the message at fault; one
    with an image or sound is refused, since the model reads text only.
    """
    if not isinstance(messages, list | tuple) or not messages:
        raise RequestError("messages must be a list of at least one message", "messages")
    return [_read_message(f"messages[{i}]", message) for i, message in enumerate(messages)]


def check_calls(messages: Sequence[Any]) -> None:
    """Refuses calls without an id, and answers to calls that nobody made. RequestError.

    A template may be content with less; for a client these are mistakes.
    """
    known: set[str] = set()
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            continue  # `read_messages` has something to say about it
        calls = message.get("tool_calls")
        for number, call in enumerate(calls if isinstance(calls, list | tuple) else ()):
            where = f"messages[{index}].tool_calls[{number}].id"
            id = call.get("id") if isinstance(call, Mapping) else None
            if not isinstance(id, str) or not id:
                raise RequestError(f"{where} must be a text that is not empty", where)
            known.add(id)
        if message.get("role") == "tool":
            where, id = f"messages[{index}].tool_call_id", message.get("tool_call_id")
            if not isinstance(id, str) or id not in known:
                what = "must be the id of a call in a message before it"
                raise RequestError(f"{where} {what}, got {_got(id)}", where)


def _read_message(where: str, message: Mapping[str, Any]) -> Message:
    if not isinstance(message, Mapping):
        raise RequestError(f"{where} must be an object, got {_got(message)}", where)
    if not isinstance(message.get("role"), str):
        got = _got(message.get("role"))
        raise RequestError(f"{where}.role must be a text, got {got}", f"{where}.role")
    read = {key: value for key, value in message.items() if value is not None or key == "content"}
    if "function_call" in read:
        what = "is not supported: calls are entries of tool_calls, answered by the role tool"
        raise RequestError(f"{where}.function_call {what}", f"{where}.function_call")
    if read.get("tool_calls") == []:  # as some servers write that there is none
        del read["tool_calls"]
    if read.get("content") is not None:
        read["content"] = _read_content(f"{where}.content", read["content"])
    elif read["role"] != "assistant":
        raise RequestError(f"{where}.content must not be missing or null", f"{where}.content")
    elif "tool_calls" not in read:  # it has thought and not spoken; templates would write None
        read["content"] = ""
    if "tool_calls" in read:
        read["tool_calls"] = _read_calls(f"{where}.tool_calls", read["tool_calls"])
    reasoning = next((read[key] for key in _REASONING if key in read), None)
    if reasoning is not None:
        read = {"thinking": reasoning} | read | {"reasoning_content": reasoning}
    return read


def _got(value: Any) -> str:
    """A value that is refused, in JSON's words."""
    words = {type(None): "nothing", dict: "an object", list: "a list"}
    return words.get(type(value)) or shown(value)


def content_text(content: Any) -> str:
    """The text of a message's content, which may be parts; "" for none. RequestError."""
    return "" if content is None else joined(_read_content("content", content))


def joined(content: str | Sequence[Message]) -> str:
    """The text of a content that has been read."""
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content)


def _read_content(where: str, content: Any) -> str | list[Message]:
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple) or not content:
        allowed = "a text or a list of at least one text part"
        raise RequestError(f"{where} must be {allowed}, got {_got(content)}", where)
    return [_read_part(f"{where}[{i}]", part) for i, part in enumerate(content)]


def _read_part(where: str, part: Any) -> Message:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(kind, str):
        raise RequestError(f"{where} must be an object with a type, got {_got(part)}", where)
    if kind not in _TEXT_PARTS:
        got = shown(kind)
        raise RequestError(f"{where} is of type {got}, but this model reads text only", where)
    text = part.get(_TEXT_PARTS[kind])
    if not isinstance(text, str):
        where = f"{where}.{_TEXT_PARTS[kind]}"
        raise RequestError(f"{where} must be a text, got {_got(text)}", where)
    return {"type": "text", "text": text}


def _read_calls(where: str, calls: Any) -> list[Message]:
    if not isinstance(calls, list | tuple):
        raise RequestError(f"{where} must be a list, got {_got(calls)}", where)
    return [_read_call(f"{where}[{i}]", call) for i, call in enumerate(calls)]


def _read_call(where: str, call: Any) -> Message:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise RequestError(f"{where} must hold a function with a name", where)
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        arguments = _read_arguments(arguments)
    elif not isinstance(arguments, dict):
        where = f"{where}.function.arguments"
        raise RequestError(f"{where} must be a JSON object, as text, got {_got(arguments)}", where)
    return {**call, "function": {**function, "arguments": arguments}}


def _read_arguments(text: str) -> Message | Verbatim:
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else Verbatim(text)


def fit_messages(messages: list[Message], traits: Traits) -> list[Message]:
    """The messages (they are changed) as a template with these traits reads them. RequestError for
    a call that was cut off, where it has no place for it.
    """
    for index, message in enumerate(messages):
        if message["role"] == "developer" and not traits.developer:
            message["role"] = "system"
        if "content" in message:
            message["content"] = _fit_content(message["content"], traits)
        for number, call in enumerate(message.get("tool_calls", ())):
            where = f"messages[{index}].tool_calls[{number}].function.arguments"
            call["function"]["arguments"] = _fit_arguments(
                where, call["function"]["arguments"], traits
            )
    return messages


def _fit_arguments(where: str, arguments: Message | Verbatim, traits: Traits) -> Any:
    if isinstance(arguments, Verbatim):
        if not traits.cut:
            why = "the model's chat template reads its entries"
            raise RequestError(f"{where} must be a JSON object, as text: {why}", where)
        return arguments if traits.objects else str(arguments)
    return arguments if traits.objects else json.dumps(arguments, ensure_ascii=False)


def _fit_content(content: Any, traits: Traits) -> Any:
    if content is None:
        return None if traits.none else ""
    if isinstance(content, list) and not traits.parts:
        return joined(content)
    if isinstance(content, str) and not traits.texts:
        return [{"type": "text", "text": content}]
    return content
