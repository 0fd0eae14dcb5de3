"""Hermes and Qwen: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, any number."""

from __future__ import annotations

from .base import ToolParser

START, END = "<tool_call>", "</tool_call>"


class HermesParser(ToolParser):
    """Calls stand in tags, among content; what is tagged and no call is content, tags and all."""

    markers = (START, END)

    _closing = False  # a call has ended, its tag has not

    def _advance(self) -> bool:
        if self._closing:
            return self._close()
        if self._scanner is None:
            if not self._add_up_to(START):
                return False
            self._open_scanner(START)
        called = self._scan()
        self._closing = bool(called)
        return called is not None

    def _close(self) -> bool:
        """Passes over what stands before the closing tag, such as a brace too many."""
        ends = [at for at in map(self._held.find, (END, START)) if at >= 0]
        if ends:
            self._held = self._held[min(ends) :].removeprefix(END)
        elif self._last:  # there was no tag: the text after the call is for the reader
            self._add_content(self._held)
            self._held = ""
        self._closing = not ends and not self._last
        return not self._closing
