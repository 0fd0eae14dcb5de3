"""An answer's text, sorted as it comes: reasoning, content, calls."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from .reasoning import ReasoningSplitter, Split
from .tools import ToolDelta, ToolParser


@dataclass
class News:
    """What is new in an answer, in the order in which the fields stand.

    apart: of the tokens so far that have brought nothing, none belongs to what comes next.
    """

    reasoning: str = ""
    content: str = ""
    calls: list[ToolDelta] = field(default_factory=list)
    apart: bool = False


class AnswerReader:
    """Takes an answer piece by piece; any cut of it gives the same when joined.

    many: False: of several calls the first one counts. forced: there are only calls, so that the
    beginning of one that was cut off before its name is no content. `reasoning_tokens`: up to the
    token that ends the reasoning, and with it.
    """

    def __init__(
        self,
        splitter: ReasoningSplitter | None,
        parser: ToolParser | None,
        many: bool = True,
        forced: bool = False,
    ) -> None:
        self._arguments: list[list[str]] = []  # of each call, in pieces
        self.reasoning_tokens = 0
        self._undecided = 0  # tokens that are reasoning if this turns out to begin with some
        self._splitter, self._parser = splitter, parser
        self._many, self._forced = many, forced

    @property
    def num_calls(self) -> int:
        """Calls that have begun."""
        return len(self._arguments)

    @property
    def calls_are_whole(self) -> bool:
        """Whether the arguments of every call so far are a JSON object."""
        return all(is_object("".join(parts)) for parts in self._arguments)

    def push(self, text: str, tokens: int, last: bool = False) -> News:
        """Takes so many tokens, which have made this text certain; last: nothing follows."""
        news = News(content=text)
        if self._splitter is not None:
            news = self._split(self._splitter, text, tokens, last)
        if self._parser is not None:
            self._parse(self._parser, news, last)
        return news

    def _split(self, splitter: ReasoningSplitter, text: str, tokens: int, last: bool) -> News:
        over = splitter.is_over
        split = splitter.push(text)
        if not over:
            self._undecided += tokens
        apart = bool(text) and splitter.is_apart  # no text: perhaps a part of a character
        rest = splitter.finish() if last else Split("", "")
        news = News(split.reasoning + rest.reasoning, split.content + rest.content, apart=apart)
        if splitter.has_begun:
            self.reasoning_tokens += self._undecided
        if splitter.has_begun or splitter.is_over:
            self._undecided = 0
        return news

    def _parse(self, parser: ToolParser, news: News, last: bool) -> None:
        pieces = [parser.push(news.content)]
        if last:
            pieces.append(parser.finish())
        news.content = "" if self._forced else "".join(piece.content for piece in pieces)
        for delta in (delta for piece in pieces for delta in piece.deltas):
            if not self._many and delta.index > 0:
                continue
            if delta.name is not None:
                self._arguments.append([])
            self._arguments[-1].append(delta.arguments)
            add_delta(news.calls, delta)


def is_object(text: str) -> bool:
    """Whether a text is one JSON object."""
    try:
        msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return False
    return True


def add_delta(deltas: list[ToolDelta], new: ToolDelta) -> None:
    """Appends a delta; arguments that go on are joined with those before."""
    if deltas and new.name is None and deltas[-1].index == new.index:
        old = deltas.pop()
        new = ToolDelta(old.index, old.id, old.name, old.arguments + new.arguments)
    deltas.append(new)
