"""Text to token ids and back, by the `tokenizers` library and a checkpoint's own files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from .errors import RequestError
from .token_bound import TokenBound
from .tokenizer_files import TokenizerFiles, read_tokenizer_files

# About 2M tokens of English: longer than any context, short enough to be encoded in seconds.
MAX_CHARS = 8_000_000
# Characters, or tokens, that take some milliseconds: the library keeps the interpreter to itself
# over a single text, but not over a batch, though it be of one.
_LONG = 10_000


class Tokenizer:
    """Encodes and decodes; immutable after construction and safe to use from several threads."""

    def __init__(self, files: TokenizerFiles, max_chars: int = MAX_CHARS) -> None:
        """max_chars: the longest text that `encode` accepts, in code points."""
        self._backend = files.backend
        self._named = files.named_tokens
        self._max_chars = max_chars
        self.chat_templates = files.chat_templates
        added = self._backend.get_added_tokens_decoder()
        self.special_ids = frozenset(token for token, entry in added.items() if entry.special)
        self.vocab_size = self._vocab_size()

    @classmethod
    def from_folder(cls, folder: str | Path, max_chars: int = MAX_CHARS) -> Tokenizer:
        """Reads tokenizer.json and its companions; CheckpointError when missing or broken."""
        return cls(read_tokenizer_files(Path(folder)), max_chars)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`, with BOS and the like where the checkpoint adds them.

        Special tokens written out in the text are recognised as such. Raises RequestError for a
        text that is too long or not valid Unicode (lone surrogates).
        """
        if not isinstance(text, str):
            raise RequestError(f"prompt must be text, got {type(text).__name__}", "prompt")
        if len(text) > self._max_chars:
            message = f"prompt must hold at most {self._max_chars} characters, got {len(text)}"
            raise RequestError(message, "prompt")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            message = f"prompt is not valid Unicode: lone surrogate at character {error.start}"
            raise RequestError(message, "prompt") from None
        return _ids(self._backend, text, add_special_tokens)

    @cached_property
    def _bound(self) -> TokenBound:
        """Made when first asked for: it looks at the whole vocabulary, and engines never ask."""
        return TokenBound(self._backend)

    def least_tokens(self, text: str) -> int:
        """So many tokens, or more, would `encode` make of it: known without encoding it."""
        return self._bound.least(text)

    def encode_plain(self, text: str) -> list[int]:
        """Token ids of `text` as it stands: nothing added, special tokens written out are text."""
        return _ids(self._plain, text, False)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of `ids`; ids without a token (a padded vocabulary) leave no text.

        Raises RequestError for an id that is negative or beyond 32 bits.
        """
        try:
            if len(ids) > _LONG:
                (text,) = self._backend.decode_batch([list(ids)], skip_special_tokens)
                return text
            return self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)
        except (OverflowError, TypeError):
            raise RequestError("token ids must be integers from 0 to 2^32 - 1") from None

    def text_of(self, token: int) -> str:
        """The text of one token alone; U+FFFD where it is a part of a character."""
        return self.decode([token], skip_special_tokens=False)

    def piece(self, token: int) -> str | None:
        """The token as the vocabulary writes it (bytes as stand-in letters ...); None: no token."""
        return self._backend.id_to_token(token)

    def id_of(self, piece: str) -> int | None:
        """The id of a token as the vocabulary writes it; None when there is none."""
        return self._backend.token_to_id(piece)

    @property
    def bos_id(self) -> int | None:
        """The begin-of-sequence token named by tokenizer_config.json."""
        return self._named_id("bos_token")

    @property
    def eos_id(self) -> int | None:
        """The end-of-sequence token named by tokenizer_config.json."""
        return self._named_id("eos_token")

    @property
    def named_tokens(self) -> Mapping[str, str]:
        """Special tokens by role, as chat templates want them: "bos_token" -> "<s>" ..."""
        return self._named

    @property
    def chat_template(self) -> str | None:
        """The default chat template's jinja source; None when the checkpoint has none."""
        return self.chat_templates.get("default")

    @property
    def decoder_spec(self) -> dict[str, Any] | None:
        """tokenizer.json's "decoder" section; None when it has none."""
        decoder: Any = self._backend.decoder
        return None if decoder is None else json.loads(decoder.__getstate__())

    @cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        backend = tokenizers.Tokenizer.from_str(self._backend.to_str())
        backend.encode_special_tokens = True
        return backend

    def _named_id(self, role: str) -> int | None:
        content = self._named.get(role)
        return None if content is None else self._backend.token_to_id(content)

    def _vocab_size(self) -> int:
        """One above the highest id, which a vocabulary with gaps has above its count."""
        return max(self._backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1


def _ids(backend: tokenizers.Tokenizer, text: str, add_special_tokens: bool) -> list[int]:
    if len(text) > _LONG:
        return backend.encode_batch([text], add_special_tokens=add_special_tokens)[0].ids
    return backend.encode(text, add_special_tokens=add_special_tokens).ids
