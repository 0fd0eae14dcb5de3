"""What every tool-call parser has in common."""

from __future__ import annotations

import secrets
import string
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from ..reasoning import overlap
from .json_call import CallScanner


@dataclass(frozen=True)
class ToolDelta:
    """News of one call. Its first delta holds id and name; the next ones more of the arguments.

    index: which of the answer's calls. arguments: a piece of the JSON text, as the model wrote it.
    """

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(frozen=True)
class ToolCall:
    """A whole call."""

    id: str
    name: str
    arguments: str


@dataclass
class Piece:
    """What is new in an answer: text for the reader, and calls."""

    content: str = ""
    deltas: list[ToolDelta] = field(default_factory=list)


def call_id() -> str:
    """An id in OpenAI's form."""
    return f"call_{secrets.token_hex(12)}"


def short_id() -> str:
    """Nine letters and digits, as Mistral's templates insist."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))


class ToolParser(ABC):
    """Takes an answer piece by piece; any cut of it gives the same content and calls when joined.

    Whitespace between content and a call belongs to neither. A marker that has only begun is held
    back. What looks like a call and turns out not to be one before its name is known is content;
    after that its arguments are passed on as they are, which may be no JSON.
    """

    # Texts by which calls are found. Where they are special tokens of the vocabulary, the engine
    # must leave those in the text (skip_special_tokens=False).
    markers: tuple[str, ...] = ()
    new_id: Callable[[], str] = staticmethod(call_id)

    def __init__(self, tools: Collection[str] = ()) -> None:
        """tools: the names that may be called; empty: any."""
        self.num_calls = 0
        self._tools = frozenset(tools)
        self._held = ""  # not consumed yet
        self._last = False  # no more text will come
        self._piece = Piece()
        self._spaces = ""  # after content: dropped unless content follows
        self._has_content = self._after_call = False
        self._scanner: CallScanner | None = None
        self._raw = ""  # what the scanner has read while it knew no name

    def push(self, text: str) -> Piece:
        """What is certain after this piece of the answer."""
        self._held += text
        return self._read()

    def finish(self) -> Piece:
        """The rest, at the end of the answer."""
        self._last = True
        piece = self._read()
        piece.content += "" if self._after_call else self._spaces
        return piece

    @abstractmethod
    def _advance(self) -> bool:
        """Consumes some of `_held`; False when there is nothing to do before more text comes."""

    def _read(self) -> Piece:
        while self._advance():
            pass
        piece, self._piece = self._piece, Piece()
        return piece

    # ---- for the formats ----

    def _add_content(self, text: str) -> None:
        """Text for the reader; whitespace at its end waits for what comes next."""
        if self._after_call:
            text = text.lstrip()
            if not text:
                return
            self._after_call = False
        text = self._spaces + text
        body = text.rstrip()
        self._has_content = self._has_content or bool(body)
        self._piece.content += body
        self._spaces = text[len(body) :]

    def _add_up_to(self, marker: str) -> bool:
        """Moves held text to the content up to `marker`, which is consumed; whether it is there."""
        before, found, self._held = self._held.partition(marker)
        keep = 0 if self._last or found else overlap(before, marker)
        self._add_content(before[: len(before) - keep])
        self._held = before[len(before) - keep :] + self._held
        return bool(found)

    def _open_scanner(self, raw: str, strict: bool = False) -> None:
        """A call may begin here; `raw`: text before its brace, content if it is none."""
        self._scanner = CallScanner(strict, self._tools)
        self._raw = raw

    def _scan(self) -> bool | None:
        """Feeds held text to the open scanner: True when its call has ended, False when it was none
        (it is content then), None when more text must come first."""
        scanner = self._scanner
        if scanner is None:
            return None
        known = scanner.name is not None
        size = scanner.feed(self._held)
        self._raw += self._held[:size]
        self._held = self._held[size:]
        if not known and scanner.name is not None:
            self._start_call(scanner.name)
        self._add_arguments(scanner.fetch())
        ended = scanner.done or scanner.failed or self._last
        if not ended:
            return None
        self._scanner = None
        if scanner.name is None:
            self._add_content(self._raw)
        return scanner.name is not None

    def _start_call(self, name: str, id: str | None = None) -> None:
        if not self._has_content:
            self._spaces = ""
        self._after_call = True
        self._piece.deltas.append(ToolDelta(self.num_calls, id or self.new_id(), name))
        self.num_calls += 1

    def _add_arguments(self, text: str) -> None:
        if text:
            self._piece.deltas.append(ToolDelta(self.num_calls - 1, arguments=text))


def parse_whole(parser: ToolParser, text: str) -> tuple[str, list[ToolCall]]:
    """(content, calls) of a whole answer, by a fresh parser."""
    first, last = parser.push(text), parser.finish()
    deltas = [*first.deltas, *last.deltas]
    calls = [
        ToolCall(
            delta.id or "",
            delta.name,
            "".join(each.arguments for each in deltas if each.index == delta.index),
        )
        for delta in deltas
        if delta.name is not None
    ]
    return first.content + last.content, calls
