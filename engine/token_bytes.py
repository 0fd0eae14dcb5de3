"""The bytes that every token of a vocabulary stands for, as the detokenizer would write them."""

from __future__ import annotations

from .detokenizer import (
    byte_level_alphabet,
    decoder_steps,
    decodes_by_piece,
    fallback_byte,
    find_anchor,
)
from .tokenizer import Tokenizer


def token_bytes(tokenizer: Tokenizer) -> list[bytes] | None:
    """UTF-8, or a part of a character, per token id; empty for ids without a token.

    A token inside of a text is meant: a leading space that only a text's beginning loses is kept. A
    byte's own token is empty where another token has this byte: models write that one.
    None for a vocabulary whose tokens have no bytes of their own (see engine/detokenizer.py).
    """
    pieces = [tokenizer.piece(token) for token in range(tokenizer.vocab_size)]
    steps = decoder_steps(tokenizer)
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        letters = byte_level_alphabet()
        return [_from_letters(piece, letters) for piece in pieces]
    anchor = find_anchor(tokenizer)
    if anchor is None or not decodes_by_piece(steps):
        return None
    fallback, skip = "ByteFallback" in kinds, len(tokenizer.text_of(anchor))
    found: list[bytes] = []
    own: dict[int, bytes] = {}
    for token, piece in enumerate(pieces):
        byte = fallback_byte(piece) if fallback else None
        if byte is not None:
            own[token] = bytes([byte])
        text = ""
        if piece is not None and byte is None:
            text = tokenizer.decode([anchor, token], skip_special_tokens=False)[skip:]
        found.append(text.encode("utf-8"))
    texts = set(found)
    for token, content in own.items():
        found[token] = b"" if content in texts else content
    return found


def _from_letters(piece: str | None, letters: dict[str, int]) -> bytes:
    try:
        return bytes(letters[letter] for letter in piece or "")
    except KeyError:  # an added token with other letters stands for itself
        return (piece or "").encode("utf-8")
