"""Prompts of every form to token ids, away from the event loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

from ..engine.errors import RequestError
from ..engine.params import validate_prompt_ids
from .lanes import Lane
from .protocol.completions import PromptField
from .protocol.errors import ApiError, from_request_error

if TYPE_CHECKING:
    from ..engine.tokenizer import Tokenizer
    from .chat import ChatTemplate
    from .tokens import TokenTexts

# Threads for what takes milliseconds. What is longer has one thread for all of it: whoever sends
# a short text must not wait for texts that take seconds.
_THREADS = 2
_LONG_TEXT = 100_000  # characters: about 0.2 s
_LONG_IDS = 50_000  # tokens to be written out: about as long
T = TypeVar("T")
# Told, before anything is encoded, a prompt's tokens and whether there may be more: raises where it
# has too many.
Check = Callable[[int, bool], None]


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
        self._short = Lane("prompts", _THREADS)
        self._long = Lane("long-prompts", 1)

    def close(self) -> None:
        """Waits for nothing."""
        self._short.close()
        self._long.close()

    async def read(
        self,
        items: list[str | list[int]],
        vocab_size: int,
        add_special_tokens: bool = True,
        check: Check | None = None,
    ) -> list[Prompt]:
        """Single prompts, e.g. of `split_prompts`, as ids. ApiError naming what is wrong."""
        if check is not None:
            for item in items:
                check(self._least(item), isinstance(item, str))
        length = sum(len(item) for item in items if isinstance(item, str))
        if self._lane(length, _LONG_TEXT) is self._short:
            return await self._away(self._short, lambda: [
                self._one(item, vocab_size, add_special_tokens) for item in items
            ])  # fmt: skip
        # One by one: others have their turns, and none is begun when the client has left.
        return [
            await self._away(self._long, partial(self._one, item, vocab_size, add_special_tokens))
            for item in items
        ]

    async def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text, perhaps none. ApiError for a text that cannot be encoded."""
        lane = self._lane(len(text), _LONG_TEXT)
        return await self._away(lane, lambda: self._encoder().encode(text, add_special_tokens))

    async def render(
        self,
        messages: list[dict[str, Any]],
        add_special_tokens: bool = False,
        check: Check | None = None,
        **options: Any,
    ) -> Prompt:
        """A chat as its prompt; options: of ChatTemplate.render. ApiError."""

        def work() -> str:
            if self._template is None:
                raise RequestError("The model has no tokenizer: it cannot chat.", "messages")
            return self._template.render(messages, **options)

        text = await self._away(self._short, work)
        if check is not None:
            check(self._least(text), True)
        return Prompt(await self.encode(text, add_special_tokens), text)

    async def decode(self, ids: list[int], vocab_size: int, skip_special_tokens: bool) -> str:
        """Text of token ids. ApiError for ids outside of the vocabulary."""

        def work() -> str:
            if ids:
                validate_prompt_ids(ids, vocab_size)
            return self._encoder().decode(ids, skip_special_tokens)

        return await self._away(self._lane(len(ids), _LONG_IDS), work)

    async def names_of(self, ids: list[int], texts: TokenTexts) -> list[str]:
        """The text of each token alone."""
        lane = self._lane(len(ids), _LONG_IDS)
        return await self._away(lane, lambda: [texts.text_of(token) for token in ids])

    def _lane(self, size: int, most: int) -> Lane:
        return self._long if size > most else self._short

    def _least(self, item: str | list[int]) -> int:
        """How many tokens it has at least."""
        if isinstance(item, str):
            return 0 if self.tokenizer is None else self.tokenizer.least_tokens(item)
        return len(item)

    async def _away(self, lane: Lane, work: Callable[[], T]) -> T:
        try:
            return await lane.run(work)
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


def split_prompts(
    field: PromptField, check_count: Callable[[int], None], check_ids: Check | None = None
) -> list[str | list[int]]:
    """The single prompts of a field that may hold one or many. ApiError for a mixture.

    check_count, check_ids: refuse a number of prompts, the tokens of a single one; they are asked
    before millions of entries are looked at.
    """
    alone = isinstance(field, str) or isinstance(next(iter(field), None), int)
    check_count(1 if alone else len(field))
    if isinstance(field, str):
        return [field]
    if alone and check_ids is not None:
        check_ids(len(field), False)
    kinds = set(map(type, field))
    if kinds == {int}:
        return [cast(list[int], field)]
    if kinds in ({str}, {list}):
        return cast(list[str | list[int]], field)
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
