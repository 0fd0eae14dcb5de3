"""Who may enter the queue at all, in which order it is served, and which children wait."""

from __future__ import annotations

from .checks import is_int, shown
from .errors import CapacityError, RequestError
from .request import Request, RequestState
from .step_plan import SchedulerLimits


def check_request(
    request: Request, limits: SchedulerLimits, max_tokens: int, max_chunk: int
) -> None:
    """Refuses a request that could never finish.

    max_tokens: what the whole KV cache holds; max_chunk: what one step computes of a request.
    Raises RequestError for a fault of the request, CapacityError where memory is the limit.
    """
    check_labels(request.priority, request.cache_salt)
    size, parent = len(request.prompt), request.parent
    if size == 0:
        raise RequestError("The prompt has no tokens.", "prompt")
    if min(request.prompt) < 0 or max(request.prompt) >= 2**31:
        raise RequestError("The prompt has a token id outside of [0, 2**31).", "prompt")
    if parent is not None and parent.prompt != request.prompt:
        raise RequestError(f"{request.id!r} and its parent differ in their prompts.", "prompt")
    if parent is not None and parent.policy.name != request.policy.name:
        raise RequestError(f"{request.id!r} and its parent attend differently.", "attention")
    if size + 1 > limits.max_model_len:
        raise RequestError(
            f"The prompt has {size} tokens; with one more to generate it exceeds the limit of "
            f"max_model_len={limits.max_model_len} tokens.",
            "prompt",
        )
    # A long prompt must get a whole multiple of align into a step, also beside others.
    room = min(limits.long_tokens, max_chunk)
    if request.policy.align > room:
        raise RequestError(
            f"This attention reads prompts in pieces of {request.policy.align} tokens, but a long "
            f"prompt has {room} tokens of a step. Raise max_num_batched_tokens.",
            "attention",
        )
    if size + 1 > max_tokens:
        raise CapacityError(
            f"The prompt has {size} tokens; with one more to generate it exceeds the {max_tokens} "
            f"tokens that the whole KV cache holds. Raise kv_cache_memory or shorten the prompt."
        )


def check_labels(priority: int, cache_salt: str) -> None:
    """RequestError for a priority or salt that would break queues or prefix keys later on."""
    if not is_int(priority):
        raise RequestError(f"priority must be an integer, got {shown(priority)}", "priority")
    if not isinstance(cache_salt, str):
        raise RequestError(f"cache_salt must be text, got {shown(cache_salt)}", "cache_salt")
    try:
        cache_salt.encode()
    except UnicodeEncodeError as error:
        message = f"cache_salt is not valid Unicode: lone surrogate at character {error.start}"
        raise RequestError(message, "cache_salt") from None


def rank(request: Request) -> tuple[int, float, int]:
    """Sort key of the queues: priority (lower first), arrival, order of `add`."""
    return request.rank


def awaits_parent(request: Request) -> bool:
    """Whether a child should wait: its parent has yet to read the prompt that they share."""
    parent = request.parent
    return (
        parent is not None
        and not request.output
        and parent.state is not RequestState.FINISHED
        and parent.num_computed < len(request.prompt)
    )
