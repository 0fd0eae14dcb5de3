"""Reasoning models: what stands in `<think>` is split off from the answer, whole or streamed.

A block counts at the very beginning of an answer only. Whitespace around the reasoning and before
the answer that follows it belongs to neither.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

START, END = "<think>", "</think>"


class Begins(Enum):
    """Where an answer begins: a block may come first, has been opened by the prompt, or is over."""

    BEFORE = "before"
    INSIDE = "inside"
    BEHIND = "behind"


class Split(NamedTuple):
    """Newly found text of either kind."""

    reasoning: str
    content: str


class ReasoningSplitter:
    """Takes an answer piece by piece; any cut of it gives the same texts when joined.

    inside: the prompt has opened the block already (see `begins`); a second opening at the
    beginning of the answer is then passed over.
    """

    def __init__(self, inside: bool = False, start: str = START, end: str = END) -> None:
        self._start, self._end = start, end
        self._inside = inside
        self._state = "before"  # "before" -> "inside" -> "between" -> "content"
        self._begun = False  # whether any reasoning but whitespace has come
        self._held = ""
        self.has_begun = False  # there is a block, perhaps an empty one

    @property
    def is_over(self) -> bool:
        """Whether the block has ended, or cannot come any more."""
        return self._state in ("between", "content")

    @property
    def is_apart(self) -> bool:
        """Whether nothing that has come so far can become content."""
        return self._state in ("inside", "between")

    def push(self, text: str) -> Split:
        """What is certain after this piece; a marker that has only begun is held back."""
        self._held += text
        return self._read(last=False)

    def finish(self) -> Split:
        """The rest; a block that never ended is reasoning."""
        return self._read(last=True)

    def _read(self, last: bool) -> Split:
        reasoning = ""
        if self._state == "before":
            self._read_start(last)
        if self._state == "inside":
            self.has_begun = True
            reasoning = self._read_inside(last)
        if self._state == "between":
            self._held = self._held.lstrip()
            self._state = "content" if self._held else "between"
        content = ""
        if self._state == "content":
            content, self._held = self._held, ""
        return Split(reasoning, content)

    def _read_start(self, last: bool) -> None:
        text = self._held.lstrip()
        if text.startswith(self._start):
            self._held = text.removeprefix(self._start)
            self._state = "inside"
        elif last or not self._start.startswith(text):
            self._state = "inside" if self._inside else "content"

    def _read_inside(self, last: bool) -> str:
        """Reasoning that no marker can follow any more; spaces may turn out to be its end."""
        if not self._begun:
            self._held = self._held.lstrip()
            self._begun = bool(self._held)
        text, found, rest = self._held.partition(self._end)
        if found:
            self._state, self._held = "between", rest
            return text.rstrip()
        sure = (text if last else text[: len(text) - overlap(text, self._end)]).rstrip()
        self._held = text[len(sure) :]
        return sure


def overlap(text: str, marker: str) -> int:
    """How many characters at the end of `text` may be the beginning of `marker`."""
    sizes = range(min(len(text), len(marker) - 1), 0, -1)
    return next((size for size in sizes if text.endswith(marker[:size])), 0)


def split_reasoning(text: str, inside: bool = False) -> Split:
    """A whole answer at once."""
    splitter = ReasoningSplitter(inside)
    first, last = splitter.push(text), splitter.finish()
    return Split(first.reasoning + last.reasoning, first.content + last.content)


def begins(prompt: str) -> Begins:
    """Where the answer to a rendered prompt begins."""
    text = prompt.rstrip()
    if text.endswith(START):
        return Begins.INSIDE
    return Begins.BEHIND if text.endswith(END) else Begins.BEFORE


def continues(content: str) -> Begins:
    """Where the rest of an answer begins, of which `content` is there already."""
    if content.rfind(START) > content.rfind(END):
        return Begins.INSIDE
    return Begins.BEHIND if content.strip() else Begins.BEFORE
