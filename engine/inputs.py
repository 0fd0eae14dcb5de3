"""What a caller hands to `Engine.generate`, brought into one form."""

from __future__ import annotations

from collections.abc import Sequence

from .checks import shown
from .errors import RequestError
from .params import SamplingParams
from .policies import AttentionSpec
from .tokenizer import Tokenizer

Prompt = str | Sequence[int]


def as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or many, as a list of prompts: a flat list of numbers is one prompt.

    TypeError for what is no prompt and no list of prompts.
    """
    if not isinstance(prompts, Sequence):
        raise TypeError(
            f"prompts must be a text, a list of token ids, or a list of these, not {shown(prompts)}"
        )
    if isinstance(prompts, str) or (prompts and isinstance(prompts[0], int)):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]


def spread(
    params: SamplingParams | Sequence[SamplingParams] | None, count: int
) -> list[SamplingParams]:
    """One for every prompt. RequestError for a list of another length."""
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * count
    if len(params) != count:
        raise RequestError(f"{len(params)} sampling_params for {count} prompts", "sampling_params")
    return list(params)


def spread_attention(
    wishes: AttentionSpec | Sequence[AttentionSpec | None] | None, count: int
) -> list[AttentionSpec | None]:
    """One for every prompt; what a wish says is checked later. RequestError for a list of another
    length.
    """
    if not isinstance(wishes, list | tuple):
        return [wishes] * count  # type: ignore[list-item]
    if len(wishes) != count:
        raise RequestError(f"{len(wishes)} attention specs for {count} prompts", "attention")
    return list(wishes)


def encode(prompt: Prompt, tokenizer: Tokenizer | None) -> Sequence[int]:
    """Token ids of a prompt. RequestError for a text where there is no tokenizer."""
    if not isinstance(prompt, str):
        return prompt
    if tokenizer is None:
        raise RequestError(
            "The checkpoint has no tokenizer.json: give token ids instead of text.", "prompt"
        )
    return tokenizer.encode(prompt)


def check_scoring(
    policy: str, max_num_batched_tokens: int, ids: Sequence[int], params: SamplingParams
) -> None:
    """For a policy that reads whole texts. RequestError.

    What a text's first rows see depends on its last ones, so nothing can be appended.
    """
    if params.max_tokens != 1:
        raise RequestError(
            f"{policy} scores texts as they are and cannot continue them: ask for max_tokens=1 "
            "(and prompt_logprobs), or use another mode",
            "max_tokens",
        )
    if len(ids) > max_num_batched_tokens:
        raise RequestError(
            f"{policy} reads a text in one step: {len(ids)} tokens are more than "
            f"max_num_batched_tokens={max_num_batched_tokens}",
            "prompt",
        )
