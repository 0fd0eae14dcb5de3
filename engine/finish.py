"""When a request ends, as far as token ids and lengths can tell (stop strings: the engine)."""

from __future__ import annotations

from collections.abc import Collection

from .request import FinishReason, Request


def finish_by_token(
    request: Request, eos_token_ids: Collection[int]
) -> tuple[FinishReason, int | None] | None:
    """(finish reason, stop token id) if the last output token ends the request, else None.

    Stop tokens count only after `min_tokens` others; the model's own end-of-sequence tokens give no
    stop id and are ignored under `ignore_eos`. A stop outranks the length limit.
    """
    token, params = request.output[-1], request.params
    if len(request.output) > params.min_tokens:
        if token in params.stop_token_ids:
            return "stop", token
        if token in eos_token_ids and not params.ignore_eos:
            return "stop", None
    if len(request.output) >= request.max_output:
        return "length", None
    return None
