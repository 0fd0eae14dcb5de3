"""What a request gives back: plain data, no tensors, cheap to send to another process."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Logprob:
    """One token's natural-log probability in the model's raw distribution.

    rank: 1 for the most likely token; equal probabilities are ranked by ascending token id.
    decoded_token: its text alone; None until a tokenizer has filled it in.
    """

    logprob: float
    rank: int
    decoded_token: str | None = None


# Per position: token id -> Logprob, by ascending rank. Holds the position's own token even when it
# is not among the top N.
TokenLogprobs = dict[int, Logprob]


@dataclass
class CompletionOutput:
    """One of the n completions of a request; in a stream, only what is new since the last output.

    finish_reason: None while running, else "stop", "length", "abort" or "error".
    stop_reason: the stop string or stop token id that ended it; None for end-of-sequence and else.
    logprobs: one entry per token of `token_ids`, None when not asked for.
    cumulative_logprob: sum over all tokens so far, also in a stream; None without logprobs.
    """

    index: int
    text: str
    token_ids: list[int]
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    logprobs: list[TokenLogprobs] | None = None
    cumulative_logprob: float | None = None

    @property
    def finished(self) -> bool:
        """True when no further token will come."""
        return self.finish_reason is not None


@dataclass
class Timings:
    """Where a request's time went, in seconds; None for what has not happened."""

    queued_s: float | None = None  # from arrival to its first step
    prefill_s: float | None = None  # from its first step to its first token
    ttft_s: float | None = None  # from arrival to its first token
    decode_s: float | None = None  # from its first to its last token
    total_s: float | None = None  # from arrival to its end


@dataclass
class RequestOutput:
    """A request's answer, or in a stream its newest part.

    prompt: the text given, None when token ids were given.
    prompt_logprobs: one entry per prompt token (the first is None), None when not asked for; in a
        stream they come once, with the first output after the prompt has been read.
    num_cached_tokens: prompt tokens whose K/V came from the prefix cache.
    stats: "preemptions", and under "attention" for "prefill" and "decode" apart, summed over the
        request's rows and all layers, mean over heads: `rows`; `keys_read`; `keys_visible`, what
        dense attention would have read; `share`, the one of the other, None without rows;
        `blocks_selected`, by methods that choose blocks; `dense_fallbacks`, how often a layer read
        more than its method allows: 0 unless something is wrong. What the prefix cache had is not
        read again and not counted; what is computed again after preemption counts again.
    error: what went wrong, when a completion finished with "error".
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    num_cached_tokens: int = 0
    timings: Timings = field(default_factory=Timings)
    stats: dict[str, Any] = field(default_factory=dict)
    error: str | None = None

    @property
    def finished(self) -> bool:
        """True when all completions are finished."""
        return all(output.finished for output in self.outputs)
