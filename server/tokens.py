"""Single tokens as clients see them beside log-probabilities: text where it is text, and bytes."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

from ..engine.detokenizer import TokenBytes

if TYPE_CHECKING:
    from ..engine.tokenizer import Tokenizer

_CACHED = 1 << 16
_LEAST = -9999.0  # JSON has no minus infinity


class TokenTexts:
    """Texts and bytes of tokens; without a tokenizer, their numbers."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self.tokenizer = tokenizer
        self._tokens = None if tokenizer is None else TokenBytes(tokenizer)
        self.bytes_of = lru_cache(_CACHED)(self._bytes_of)
        self.text_of = lru_cache(_CACHED)(self._text_of)

    def names(self, as_ids: bool | None) -> Callable[[int], str]:
        """How tokens are called: by their texts, or as "token_id:7", unlike any other."""
        return named_by_id if as_ids else self.text_of

    def _bytes_of(self, token: int) -> bytes:
        return b"" if self._tokens is None else self._tokens.of(token)

    def _text_of(self, token: int) -> str:
        """The token's text; "bytes:\\xe4..." for a part of a character, as OpenAI writes it."""
        if self._tokens is None:
            return named_by_id(token)
        content = self.bytes_of(token)
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)


def named_by_id(token: int) -> str:
    """A token that has no text, or is not to be called by it."""
    return f"token_id:{token}"


def finite(logprob: float) -> float:
    """A log-probability that JSON can carry."""
    return max(logprob, _LEAST)
