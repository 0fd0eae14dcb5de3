"""What a caller hands to `Engine.generate`, brought into one form."""

from __future__ import annotations

from collections.abc import Sequence

from .checks import shown
from .errors import RequestError
from .params import SamplingParams

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
