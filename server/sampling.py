"""What the routes check about a request's numbers before the engine hears of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..engine.errors import RequestError
from ..engine.params import SamplingParams
from .protocol.errors import ApiError, from_request_error


def sampling_params(
    make: Callable[[dict[str, Any]], SamplingParams],
    defaults: dict[str, Any],
    names: dict[str, str] | None = None,
) -> SamplingParams:
    """What `make` returns; its refusals as ApiError, with the names that the client used."""
    try:
        return make(defaults)
    except RequestError as error:
        raise from_request_error(error, names) from None


def check_bias(bias: dict[int, float] | None, vocab_size: int) -> None:
    """Refuses more entries than there are tokens, before each of them is looked at. ApiError."""
    if bias is not None and len(bias) > vocab_size:
        message = (
            f"logit_bias may hold at most {vocab_size} entries, as many as the model has tokens, "
            f"got {len(bias)}"
        )
        raise ApiError(400, message, "logit_bias", "invalid_value")


def check_text(tokens: int, limit: int, more: bool = False) -> None:
    """Refuses a text to embed that cannot fit; more: it may have more tokens. ApiError."""
    if tokens >= limit:
        message = (
            f"A text to embed may have at most {limit - 1} tokens (this model's {limit}, less the "
            f"one that the engine generates behind each text), but this one has "
            f"{_count(tokens, more)}."
        )
        raise ApiError(400, message, "input", "context_length_exceeded")


def check_lengths(
    prompt: int, wanted: int | None, limit: int, param: str, more: bool = False
) -> None:
    """Refuses what cannot fit into the model's context; both numbers are said. ApiError.

    more: the prompt may have more tokens than that.
    """
    if prompt + 1 > limit:
        message = (
            f"This model's context has at most {limit} tokens, but the prompt has "
            f"{_count(prompt, more)}, and at least one must be left for the answer."
        )
    elif wanted is not None and prompt + wanted > limit:
        message = (
            f"This model's context has at most {limit} tokens, but "
            f"{_count(prompt + wanted, more)} were asked for: {_count(prompt, more)} in the prompt "
            f"and {wanted} for the answer."
        )
    else:
        return
    raise ApiError(400, message, param, "context_length_exceeded")


def _count(tokens: int, more: bool) -> str:
    return f"at least {tokens}" if more else str(tokens)
