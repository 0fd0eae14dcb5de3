"""Token ids to text, piece by piece: the deltas joined are exactly the full decode.

Three ways, by the checkpoint's decoder, each O(1) amortised per token, none guessing at U+FFFD:
byte-level vocabularies go through an incremental UTF-8 decoder; vocabularies whose pieces decode
one by one (SentencePiece style, WordPiece) decode every piece behind a fixed harmless one, because
only the very first piece of a text loses its space; anything else is decoded at the end.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from itertools import islice
from typing import Any, Protocol

from .tokenizer import Tokenizer

# Decoder steps that treat each piece alone (knowing at most whether it is the first).
_PER_PIECE = frozenset({"Replace", "Metaspace", "WordPiece", "ByteFallback", "Strip"})

# Enough of a prompt's end to hold the start of an unfinished character.
_CONTEXT = 8


class _Text(Protocol):
    def feed(self, token: int) -> str: ...
    def flush(self) -> str: ...
    def begin_after(self, prompt: Sequence[int]) -> None: ...
    def bytes_of(self, token: int) -> bytes: ...


class IncrementalDetokenizer:
    """The text of one completion as it grows; never a part of a character.

    Without `prompt_ids` the deltas joined equal `tokenizer.decode(output)`. With them they continue
    the prompt's text: the space that decoding strips from the start of a text is kept.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int] = (),
        skip_special_tokens: bool = True,
    ) -> None:
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._tokenizer = tokenizer
        self._text = _text_for(tokenizer)
        visible = filter(self._leaves_text, reversed(prompt_ids))
        context = list(islice(visible, _CONTEXT))[::-1]
        if context:
            self._text.begin_after(context)

    def push(self, token: int) -> str:
        """Takes the next token; returns the text that is now certain, possibly empty."""
        return self._text.feed(token) if self._leaves_text(token) else ""

    def flush(self) -> str:
        """The rest at the end of the output: unfinished characters become U+FFFD."""
        return self._text.flush()

    def _leaves_text(self, token: int) -> bool:
        return token not in self._skipped and self._tokenizer.piece(token) is not None


class _ByteLevelText:
    """Pieces are bytes in disguise: every byte is written as one printable letter."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._bytes = byte_level_alphabet()
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def begin_after(self, prompt: Sequence[int]) -> None:
        for token in prompt:
            self.feed(token)

    def feed(self, token: int) -> str:
        return self._utf8.decode(self.bytes_of(token))

    def bytes_of(self, token: int) -> bytes:
        piece = self._tokenizer.piece(token) or ""
        try:
            return bytes(self._bytes[letter] for letter in piece)
        except KeyError:  # an added token with other letters stands for itself
            return piece.encode("utf-8")

    def flush(self) -> str:
        return self._utf8.decode(b"", final=True)


class _PieceText:
    """Pieces decode one by one, except that a run of byte tokens (<0xE4>) is one unit.

    The run must be complete before it is decoded: one bad byte spoils all of it.
    """

    def __init__(self, tokenizer: Tokenizer, anchor: int, byte_fallback: bool) -> None:
        self._tokenizer = tokenizer
        self._anchor = anchor
        self._skip = len(tokenizer.text_of(anchor))
        self._byte_fallback = byte_fallback
        self._started = False
        self._pending: list[int] = []

    def begin_after(self, prompt: Sequence[int]) -> None:
        self._started = True
        unfinished = codecs.getincrementaldecoder("utf-8")("replace")
        for token in prompt:
            byte = self._byte_of(token)
            unfinished.decode(b" " if byte is None else bytes([byte]))
        count = len(unfinished.getstate()[0])
        self._pending = list(prompt[len(prompt) - count :])

    def feed(self, token: int) -> str:
        self._pending.append(token)
        return "" if self._byte_of(token) is not None else self.flush()

    def flush(self) -> str:
        if not self._pending:
            return ""
        pending, self._pending = self._pending, []
        if self._started:
            return self._decode([self._anchor, *pending])[self._skip :]
        self._started = True
        return self._decode(pending)

    def bytes_of(self, token: int) -> bytes:
        byte = self._byte_of(token)
        if byte is not None:
            return bytes([byte])
        return self._decode([self._anchor, token])[self._skip :].encode("utf-8")

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def _byte_of(self, token: int) -> int | None:
        return fallback_byte(self._tokenizer.piece(token)) if self._byte_fallback else None


class _WholeText:
    """A decoder of unknown ways: nothing is certain before the end."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []

    def begin_after(self, prompt: Sequence[int]) -> None:
        """A prompt changes nothing: the text is that of the output alone."""

    def feed(self, token: int) -> str:
        self._ids.append(token)
        return ""

    def flush(self) -> str:
        ids, self._ids = self._ids, []
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def bytes_of(self, token: int) -> bytes:
        return self._tokenizer.text_of(token).encode("utf-8")


def byte_level_alphabet() -> dict[str, int]:
    """The letter that stands for each byte in byte-level vocabularies: letter -> byte.

    Printable Latin-1 bytes stand for themselves, the others are numbered from U+0100 on.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(256 + number): byte for number, byte in enumerate(others)}


def fallback_byte(piece: str | None) -> int | None:
    """The byte that a piece such as <0xE4> stands for; None for any other piece."""
    if piece is None or len(piece) != 6 or piece[:3] != "<0x" or piece[5] != ">":
        return None
    try:
        return int(piece[3:5], 16)
    except ValueError:
        return None


def _text_for(tokenizer: Tokenizer) -> _Text:
    kinds = [step["type"] for step in decoder_steps(tokenizer)]
    if kinds == ["ByteLevel"]:
        return _ByteLevelText(tokenizer)
    anchor = find_anchor(tokenizer)
    if anchor is None or not decodes_by_piece(decoder_steps(tokenizer)):
        return _WholeText(tokenizer)
    return _PieceText(tokenizer, anchor, "ByteFallback" in kinds)


def decoder_steps(tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """The steps of tokenizer.json's decoder, each with its "type"."""
    spec = tokenizer.decoder_spec
    return [] if spec is None else list(spec.get("decoders", [spec]))


def decodes_by_piece(steps: Sequence[dict[str, Any]]) -> bool:
    """True when only the first piece of a text decodes differently from any later one."""
    fused = False
    for step in steps:
        if step["type"] == "Fuse":
            fused = True
        elif fused:
            # On the joined text: at most one leading character may go, so that piece 1 settles it.
            if step["type"] != "Strip" or step["start"] > 1 or step["stop"] > 0:
                return False
        elif step["type"] not in _PER_PIECE:
            return False
    return True


def find_anchor(tokenizer: Tokenizer) -> int | None:
    """An ordinary letter's token, to stand in front of pieces; None when there is none."""
    for letter in "aeiotnsrAEIOTN0123456789":
        for piece in (letter, "\u2581" + letter):
            token = tokenizer.id_of(piece)
            if token is not None and tokenizer.decode([token]) == letter:
                return token
    return None


class TokenBytes:
    """What single tokens add in the middle of a text, in UTF-8; perhaps a part of a character.

    Joined over a completion they are its text (special tokens included), for vocabularies that
    decode byte by byte or piece by piece.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._text = _text_for(tokenizer)

    def of(self, token: int) -> bytes:
        """The bytes; empty for an id without a token."""
        return b"" if self._tokenizer.piece(token) is None else self._text.bytes_of(token)
