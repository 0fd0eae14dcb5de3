"""Mistral: `[TOOL_CALLS] [{"name": ..., "arguments": {...}}, ...]`, and the newer form
`[TOOL_CALLS]name[ARGS]{...}`, with the marker before each call and perhaps `[CALL_ID]id`.
"""

from __future__ import annotations

from .base import ToolParser, short_id
from .json_call import ValueScanner

MARKER, ID, ARGS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
_SPACES = " \t\r\n"


class MistralParser(ToolParser):
    """Content up to the marker, calls after it."""

    markers = (MARKER, ID, ARGS)
    new_id = staticmethod(short_id)

    _state = "content"  # content, form (list or name), list, name, arguments
    _value: ValueScanner

    def _advance(self) -> bool:
        return {
            "content": self._content,
            "form": self._form,
            "list": self._list,
            "name": self._name,
            "arguments": self._arguments,
        }[self._state]()

    def _content(self) -> bool:
        if not self._add_up_to(MARKER):
            return False
        self._state = "form"
        return True

    def _form(self) -> bool:
        self._held = self._held.lstrip(_SPACES)
        if not self._held:
            return False
        self._state = "list" if self._held[0] in "[{" else "name"  # one object needs no list
        self._held = self._held.removeprefix("[")
        return True

    def _list(self) -> bool:
        if self._scanner is None:
            self._held = self._held.lstrip(_SPACES + ",")
            if not self._held:
                return False
            if not self._held.startswith("{"):
                self._held = self._held.removeprefix("]")
                self._state = "content"
                return True
            self._open_scanner("")
        called = self._scan()
        if called is False:
            self._state = "content"
        return called is not None

    def _name(self) -> bool:
        """Waits until the arguments begin; their brace ends a name, marker or not."""
        head, brace, rest = self._held.partition("{")
        if not brace:
            if self._last:
                self._add_content(MARKER + self._held)
                self._held = ""
            return False
        name, _, after = head.removesuffix(ARGS).partition(ID)
        self._start_call(name.strip(), after.removesuffix(ARGS).strip() or None)
        self._held, self._value, self._state = brace + rest, ValueScanner(), "arguments"
        return True

    def _arguments(self) -> bool:
        size = 0
        while size < len(self._held) and not self._value.done:
            size += self._value.takes(self._held[size])
        self._add_arguments(self._held[:size])
        self._held = self._held[size:]
        if not self._value.done:
            return False
        self._state = "content"
        return True
