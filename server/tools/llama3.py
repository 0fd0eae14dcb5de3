"""Llama 3: the whole answer is `{"name": ..., "parameters": {...}}`, or several after `;`."""

from __future__ import annotations

from .base import ToolParser

TAG = "<|python_tag|>"  # may come first; as a special token it usually leaves no text


class Llama3Parser(ToolParser):
    """An answer that begins otherwise, or with JSON that is no call of a tool, is content."""

    _is_content = False

    def _advance(self) -> bool:
        if self._is_content:
            self._add_content(self._held)
            self._held = ""
            return False
        if self._scanner is None and not self._open():
            return self._is_content
        called = self._scan()
        self._is_content = called is False
        return called is not None

    def _open(self) -> bool:
        """Whether the next text is the beginning of a JSON object; the scanner then reads it."""
        start = self._after(self._held, " \t\r\n;" if self.num_calls else " \t\r\n")
        rest = self._held[start:]
        if rest.startswith(TAG):
            start = self._after(self._held, " \t\r\n", start + len(TAG))
            rest = self._held[start:]
        elif rest and TAG.startswith(rest) and not self._last:
            return False
        if rest.startswith("{"):
            self._open_scanner(self._held[:start], strict=True)
            self._held = rest
            return True
        self._is_content = bool(rest) or (self._last and bool(self._held))
        return False

    @staticmethod
    def _after(text: str, skipped: str, start: int = 0) -> int:
        """The first position from `start` on whose character is none of `skipped`."""
        return len(text) - len(text[start:].lstrip(skipped))
