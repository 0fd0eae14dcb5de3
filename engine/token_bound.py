"""How few tokens a text can become: a bound that costs nothing beside encoding it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import tokenizers
from tokenizers import models

# Normalisers that leave at least as many characters as they find; NFC does so with ASCII, and of
# other text it leaves a quarter at least: no character has a decomposition of more than four.
_KEEPING_NORMALIZERS = frozenset({"Prepend", "ByteLevel", "NFC"})
_COMPOSED = 4
# Pre-tokenisers that drop nothing (those that split may be told to: see `_drops`).
_KEEPING_SPLITTERS = frozenset({"ByteLevel", "Digits", "Metaspace", "Split", "Punctuation"})


class TokenBound:
    """A lower bound of the tokens of a text: its characters / those of the longest token.

    It holds where no character vanishes, and none joins others in one unknown token: that is known
    of byte-level BPE, and of BPE with all bytes to fall back on, without a normaliser that shortens
    (NFKC, Strip ...) and a pre-tokeniser that drops. Of every other tokeniser nothing is said (0).
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        """backend: with all its added tokens."""
        pieces = backend.get_vocab(with_added_tokens=True)
        added = backend.get_added_tokens_decoder().values()
        self._longest = max(map(len, pieces), default=0) if _keeps_all(backend, pieces) else 0
        self._composes = any(s["type"] == "NFC" for s in _steps(backend.normalizer, "normalizers"))
        # Such a token takes all white space beside it along.
        self._strips = any(token.lstrip or token.rstrip for token in added)

    def least(self, text: str) -> int:
        """No encoding of `text` has fewer tokens."""
        if not self._longest:
            return 0
        count = len(text)
        if self._strips and count > self._longest:
            count = sum(map(len, text.split()))
        if self._composes and not text.isascii():
            count //= _COMPOSED
        return -(-count // self._longest)


def _keeps_all(backend: tokenizers.Tokenizer, pieces: dict[str, int]) -> bool:
    model = backend.model
    if not isinstance(model, models.BPE):
        return False
    normalizers = list(_steps(backend.normalizer, "normalizers"))
    splitters = list(_steps(backend.pre_tokenizer, "pretokenizers"))
    if not all(_lengthens(step) for step in normalizers):
        return False
    if not all(step["type"] in _KEEPING_SPLITTERS and not _drops(step) for step in splitters):
        return False
    if any(step["type"] == "ByteLevel" for step in normalizers + splitters):
        from tokenizers.pre_tokenizers import ByteLevel

        return all(letter in pieces for letter in ByteLevel.alphabet())
    return bool(model.byte_fallback) and all(f"<0x{byte:02X}>" in pieces for byte in range(256))


def _steps(component: Any, key: str) -> Iterator[dict[str, Any]]:
    """A normaliser or pre-tokeniser as its single steps in tokenizer.json's form."""
    return iter(()) if component is None else _flat(json.loads(component.__getstate__()), key)


def _flat(step: dict[str, Any], key: str) -> Iterator[dict[str, Any]]:
    if step["type"] == "Sequence":
        for each in step[key]:
            yield from _flat(each, key)
    else:
        yield step


def _lengthens(step: dict[str, Any]) -> bool:
    if step["type"] == "Replace":
        pattern = step["pattern"].get("String")  # what a regular expression takes away is unknown
        return pattern is not None and len(step["content"]) >= len(pattern)
    return step["type"] in _KEEPING_NORMALIZERS


def _drops(step: dict[str, Any]) -> bool:
    return step.get("behavior") == "Removed"
