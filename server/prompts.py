"""Prompts of every form to token ids, away from the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from ..engine.errors import RequestError
from ..engine.params import validate_prompt_ids
from .protocol.completions import PromptField
from .protocol.errors import ApiError, from_request_error

if TYPE_CHECKING:
    from ..engine.tokenizer import Tokenizer
    from .chat import ChatTemplate

_THREADS = 2
T = TypeVar("T")


@dataclass(frozen=True)
class Prompt:
    """Token ids, and the text that they came from if there was one."""

    ids: list[int]
    text: str | None = None


class PromptReader:
    """Encodes, decodes and renders in threads of its own; a slow text holds nobody else up."""

    def __init__(self, tokenizer: Tokenizer | None, template: ChatTemplate | None) -> None:
        self.tokenizer = tokenizer
        self._template = template
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="prompts")

    def close(self) -> None:
        """Waits for nothing."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def read(
        self, field: PromptField, vocab_size: int, add_special_tokens: bool = True
    ) -> list[Prompt]:
        """The prompts in a `prompt` or `input` field. ApiError naming what is wrong."""
        items = split_prompts(field)
        return await self._away(lambda: [
            self._one(item, vocab_size, add_special_tokens) for item in items
        ])  # fmt: skip

    async def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text, perhaps none. ApiError for a text that cannot be encoded."""
        return await self._away(lambda: self._encoder().encode(text, add_special_tokens))

    async def render(
        self, messages: list[dict[str, Any]], add_special_tokens: bool = False, **options: Any
    ) -> Prompt:
        """A chat as its prompt; options: of ChatTemplate.render. ApiError."""

        def work() -> Prompt:
            if self._template is None:
                raise RequestError("The model has no tokenizer: it cannot chat.", "messages")
            text = self._template.render(messages, **options)
            return Prompt(self._encoder().encode(text, add_special_tokens), text)

        return await self._away(work)

    async def decode(self, ids: list[int], vocab_size: int, skip_special_tokens: bool) -> str:
        """Text of token ids. ApiError for ids outside of the vocabulary."""

        def work() -> str:
            if ids:
                validate_prompt_ids(ids, vocab_size)
            return self._encoder().decode(ids, skip_special_tokens)

        return await self._away(work)

    async def _away(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        except RequestError as error:
            raise from_request_error(error) from None

    def _one(self, item: str | list[int], vocab_size: int, add_special_tokens: bool) -> Prompt:
        if isinstance(item, str):
            prompt = Prompt(self._encoder().encode(item, add_special_tokens), item)
        else:
            prompt = Prompt(item)
        validate_prompt_ids(prompt.ids, vocab_size)
        return prompt

    def _encoder(self) -> Tokenizer:
        if self.tokenizer is None:
            message = "The model has no tokenizer.json: give token ids instead of text."
            raise RequestError(message, "prompt")
        return self.tokenizer


def split_prompts(field: PromptField) -> list[str | list[int]]:
    """The single prompts of a field that may hold one or many. ApiError for a mixture."""
    if isinstance(field, str):
        return [field]
    kinds = {type(item) for item in field}
    if kinds == {int}:
        return [[item for item in field if isinstance(item, int)]]
    if kinds in ({str}, {list}):
        return [item for item in field if not isinstance(item, int)]
    what = "must not be empty" if not kinds else "must not mix texts and token ids"
    raise ApiError(400, f"prompt {what}", "prompt", "invalid_value")


def truncate(
    prompt: Prompt, tokens: int | None, max_model_len: int, answer: int | None = None
) -> Prompt:
    """The last `tokens` of a prompt (-1: as many as leave room for the answer); None: all.

    answer: the tokens that it may have; None: one at least.
    """
    if tokens is None:
        return prompt
    keep = max(1, max_model_len - (answer or 1)) if tokens == -1 else tokens
    return prompt if len(prompt.ids) <= keep else Prompt(prompt.ids[-keep:])
