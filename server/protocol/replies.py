"""Parts of replies that several routes share."""

from __future__ import annotations

from typing import Any

import msgspec


class CachedTokens(msgspec.Struct):
    """Prompt tokens that the prefix cache had."""

    cached_tokens: int = 0


class ReasoningTokens(msgspec.Struct):
    """Completion tokens that were reasoning."""

    reasoning_tokens: int = 0


class Usage(msgspec.Struct):
    """Tokens of a request; a prompt counts once however many completions it has."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    prompt_tokens_details: CachedTokens = msgspec.field(default_factory=CachedTokens)
    completion_tokens_details: ReasoningTokens = msgspec.field(default_factory=ReasoningTokens)


class Extras(msgspec.Struct):
    """What only Saccade tells: where the time went (seconds), what attention read, by phase."""

    timings: dict[str, float | None]
    attention: dict[str, dict[str, float | int | None]]
    preemptions: int


# Log-probabilities of a prompt, as vLLM writes them: per position, token id -> entry.
class PromptLogprob(msgspec.Struct):
    """One token at one position of the prompt."""

    logprob: float
    rank: int
    decoded_token: str | None


PromptLogprobs = list[dict[str, PromptLogprob] | None]
Unset = msgspec.UnsetType
UNSET = msgspec.UNSET
Json = dict[str, Any]
