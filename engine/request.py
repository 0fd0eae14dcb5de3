"""A request, and the only state machine: WAITING -> RUNNING -> (WAITING on preemption) -> FINISHED.

There are no phases. `num_computed` counts the tokens whose K and V are in pages and catches up with
`num_tokens`; prefill, chunked prefill, decode and recomputation are all that one movement.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from .params import SamplingParams

FinishReason = Literal["stop", "length", "abort", "error"]


class RequestState(Enum):
    """Where a request stands; see the module docstring for the transitions."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class Policy(Protocol):
    """What the scheduler must know of how a request attends (attention.policy has the rest)."""

    @property
    def name(self) -> str:
        """Rows of one policy are computed together."""
        ...

    def key(self, prompt_len: int) -> str:
        """Part of every prefix-cache key of a prompt of this length: K and V of one policy, and of
        one way of reading a prompt, are not those of another.
        """
        ...

    @property
    def align(self) -> int:
        """Prompt chunks begin on multiples of this."""
        ...

    def tail(self, prompt_len: int) -> int | None:
        """The first position whose K and V depend on where a prompt of this length ends."""
        ...


class Request:
    """One prompt and the tokens sampled for it.

    Lower `priority` runs first, then earlier `arrival`. `parent`: for n > 1, the first request of
    the same prompt, whose pages this one shares when it can.
    """

    def __init__(
        self,
        id: str,
        prompt: list[int],
        params: SamplingParams,
        policy: Policy,
        priority: int = 0,
        arrival: float = 0.0,
        cache_salt: str = "",
        parent: Request | None = None,
    ) -> None:
        self.id = id
        self.prompt = prompt
        self.params = params
        self.policy = policy
        self.priority = priority
        self.arrival = arrival
        self.cache_salt = cache_salt
        self.parent = parent
        self.output: list[int] = []
        self.state = RequestState.WAITING
        self.finish_reason: FinishReason | None = None
        self.stop_reason: int | str | None = None  # the stop token id or stop string that matched
        self.error: BaseException | str | None = None
        self.num_computed = 0
        self.num_cached = 0  # tokens the prefix cache had at first admission
        self.num_preemptions = 0
        # Written by Scheduler.add: order of service, and output tokens this request may have.
        self.rank: tuple[int, float, int] = (priority, arrival, 0)
        self.max_output = 0
        # Written by Scheduler.note_time: seconds a token of its latest chunk of a prompt took.
        self.pace = 0.0
        # Written by PageTables: per layer group, page ids by position; -1: dropped by a window.
        self.pages: list[list[int]] = []
        self.num_dropped: list[int] = []  # per layer group, entries of -1, behind pages of sinks
        # Written by the prefix cache: digests of full pages of tokens, pages already published.
        self.digests: list[bytes] = []
        self.num_published = 0

    @property
    def num_tokens(self) -> int:
        """Prompt and output tokens known so far."""
        return len(self.prompt) + len(self.output)

    @property
    def remaining(self) -> int:
        """Known tokens whose K and V are not in pages yet; 1 for a request that decodes."""
        return len(self.prompt) + len(self.output) - self.num_computed

    @property
    def reuses_prefix(self) -> bool:
        """Prompt logprobs need the logits of every prompt token, a mean of hidden states all of
        those: nothing may be skipped then.
        """
        return self.params.prompt_logprobs is None and self.params.pooling != "mean"

    def tokens(self, start: int, stop: int) -> list[int]:
        """Token ids [start, stop) of prompt and output as one sequence."""
        size = len(self.prompt)
        if stop <= size:
            return self.prompt[start:stop]
        return self.prompt[start:size] + self.output[max(0, start - size) : stop - size]

    def start(self) -> None:
        """WAITING -> RUNNING."""
        self._move(RequestState.WAITING, RequestState.RUNNING)

    def preempt(self) -> None:
        """RUNNING -> WAITING; its pages are gone, its tokens stay and will be recomputed."""
        self._move(RequestState.RUNNING, RequestState.WAITING)
        self.num_preemptions += 1

    def finish(self, reason: FinishReason, stop_reason: int | str | None = None) -> None:
        """WAITING or RUNNING -> FINISHED, once."""
        if self.state is RequestState.FINISHED:
            raise RuntimeError(f"Request {self.id!r} has already finished.")
        self.state = RequestState.FINISHED
        self.finish_reason = reason
        self.stop_reason = stop_reason

    def _move(self, source: RequestState, target: RequestState) -> None:
        if self.state is not source:
            raise RuntimeError(
                f"Request {self.id!r} is {self.state.value}, so it cannot become {target.value}."
            )
        self.state = target

    def __repr__(self) -> str:
        return (
            f"Request({self.id!r}, {self.state.value}, {self.num_computed}/{self.num_tokens} "
            f"tokens computed)"
        )
