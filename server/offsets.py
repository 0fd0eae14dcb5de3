"""Where tokens begin in the text that a client gets: OpenAI's `text_offset`."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from ..engine.detokenizer import IncrementalDetokenizer, fallback_byte
from .tokens import TokenTexts

_CONTEXT = 8  # tokens of a prompt's end, enough for the start of an unfinished character
_NEAR = 4  # characters by which a tokenizer's normalisation may have shortened a text


class Offsets:
    """Takes the tokens of one text in order; `take` says where each begins, in characters.

    A token that leaves no text, such as BOS, stands where the next one does; the parts of a
    character all stand where it does. In a text that normalisation changes offsets are near.
    Without a tokenizer there is no text, and every offset is 0.
    """

    def __init__(
        self,
        texts: TokenTexts,
        prompt_ids: Sequence[int] = (),
        skip_special_tokens: bool = True,
        shown: str | None = None,
    ) -> None:
        """prompt_ids: what the tokens continue. shown: the text itself where the tokens were made
        of it: a special token written out in it has a width then, one that was added has none.
        """
        self._texts, self._shown = texts, shown
        self._at = 0  # where the next token begins
        self._certain = 0  # where the text ends that the detokenizer has given out
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        tokenizer = texts.tokenizer
        self._special = tokenizer.special_ids if tokenizer is not None else frozenset[int]()
        self._skips = skip_special_tokens
        self._detokenizer: IncrementalDetokenizer | None = None
        if tokenizer is not None:
            skips = skip_special_tokens and shown is None
            self._detokenizer = IncrementalDetokenizer(tokenizer, prompt_ids, skips)
        for token in prompt_ids[-_CONTEXT:]:
            if self._leaves_text(token):
                self._utf8.decode(texts.bytes_of(token))

    def begin_at(self, start: int) -> None:
        """The text follows another one of so many characters."""
        self._at = self._certain = start

    def take(self, token: int) -> int:
        """Where the next token of the text begins."""
        if self._detokenizer is None or not self._leaves_text(token):
            return self._at
        content = self._texts.bytes_of(token)
        start = self._at + self._broken(content)
        text = self._detokenizer.push(token)
        ahead = self._utf8.decode(content)
        if text:
            self._at = self._certain = self._end_of(text)
        elif self._waits(token):
            self._at += len(ahead)
        return start

    def _waits(self, token: int) -> bool:
        """Of a run of byte tokens nothing comes out before its end, but its characters count."""
        tokenizer = self._texts.tokenizer
        return tokenizer is not None and fallback_byte(tokenizer.piece(token)) is not None

    def _broken(self, content: bytes) -> int:
        """Characters begun before that do not go on here: each stands in the text as U+FFFD."""
        begun = self._utf8.getstate()[0]
        return len((begun + content[:1]).decode(errors="replace")) - 1 if begun and content else 0

    def _leaves_text(self, token: int) -> bool:
        if token not in self._special:
            return True
        if self._shown is None:
            return not self._skips
        return self._shown.startswith(self._texts.text_of(token), self._at)

    def _end_of(self, text: str) -> int:
        """Where text that comes out now ends; tokenizers may have changed what is shown."""
        at, shown = self._certain, self._shown
        if shown is None or shown.startswith(text, at):
            return at + len(text)
        if text[0] == " " and shown.startswith(text[1:], at):  # a space put before a word
            return at + len(text) - 1
        found = shown.find(text, at, at + len(text) + _NEAR)
        return min(max(at, found) + len(text), len(shown))
