"""What the scheduler is told (limits, layer groups) and what it answers (the plan of one step)."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from .kept_rule import KeptRule
from .pages import pages_for
from .request import Request, RequestState

# (layer group, source page, destination page): copied before the step writes anything.
PageCopy = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """Layers that share page tables. `window`: tokens of context they need; None: all of it.

    sinks: the first tokens, which are kept beside the window. compact: what was dropped takes no
    room in a step's page tables (see Step.skipped), so that a sequence may grow without end.
    kept: the pages hold, instead of every token, those that each head keeps by this rule.
    """

    window: int | None = None
    sinks: int = 0
    compact: bool = False
    kept: KeptRule | None = None

    def __post_init__(self) -> None:
        if self.window is not None and self.kept is not None:
            raise ValueError("A layer group has a window or keeps tokens by a rule, not both.")
        if self.window is not None and self.window < 1:
            raise ValueError(f"A layer group's window must be at least 1 token, got {self.window}.")
        if self.sinks < 0 or (self.window is None and (self.sinks or self.compact)):
            raise ValueError(f"Without a window all is kept, there are no sinks: {self}.")

    def sink_pages(self, page_size: int) -> int:
        """Leading pages that are never dropped."""
        return pages_for(self.sinks, page_size)

    def pages(self, num_tokens: int, page_size: int) -> int:
        """Entries of the page table of a sequence of so many tokens."""
        slots = num_tokens if self.kept is None else self.kept.most(num_tokens)
        return pages_for(slots, page_size)

    def first_needed(self, num_computed: int) -> int:
        """First position that must still be in pages when position `num_computed` is next."""
        return 0 if self.window is None else max(0, num_computed - self.window)


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """What one step, and one request, may take.

    max_num_seqs: requests running at a time. max_num_batched_tokens: tokens computed in one step.
    max_model_len: prompt plus output tokens of one request.
    long_prefill_share: 0 < share <= 1, the part of a step's tokens that long prefills (those with
    more than this share of a step still to go) may take while anybody else has work.
    align: what the engine's own attention policy begins prefill chunks on multiples of; a step
    always has room for as much. fork_align: a request that forks from another's prompt begins on a
    multiple of this, whatever its policy. whole_texts: a prompt is computed in one step or not yet.
    alone_step_seconds: how long a step of long prompts should take while nobody else has work.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    long_prefill_share: float = 0.5
    align: int = 1
    fork_align: int = 1
    whole_texts: bool = False
    alone_step_seconds: float = inf

    def __post_init__(self) -> None:
        names = "max_num_seqs max_num_batched_tokens max_model_len align fork_align"
        for name in names.split():
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not 0 < self.long_prefill_share <= 1:
            raise ValueError(
                f"long_prefill_share must be in (0, 1], got {self.long_prefill_share}."
            )
        if self.max_num_batched_tokens < self.align:
            raise ValueError(
                f"max_num_batched_tokens={self.max_num_batched_tokens} is less than the attention "
                f"method's chunk alignment of {self.align} tokens: no prompt could ever be read."
            )

    @property
    def long_tokens(self) -> int:
        """Tokens of a step that long prefills share when they are not alone."""
        return max(self.align, int(self.max_num_batched_tokens * self.long_prefill_share))

    def is_long(self, num_tokens: int) -> bool:
        """Whether a request with this many tokens to compute counts as a long prefill."""
        return num_tokens > self.long_tokens


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens [start, start + count) of a request; `sample`: the last row's logits are needed."""

    request: Request
    start: int
    count: int
    sample: bool


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step: single-token rows first, then prefill chunks.

    copies: (group, source page, destination page), to be done before the step. No page is written
    by two copies, and no source is an earlier copy's destination, so one gather and one scatter do.
    """

    chunks: list[Chunk]
    copies: list[PageCopy]

    @property
    def live(self) -> list[Chunk]:
        """The chunks to run: a request that was aborted after planning has no pages any more."""
        return [chunk for chunk in self.chunks if chunk.request.state is RequestState.RUNNING]

    @property
    def num_tokens(self) -> int:
        """Tokens planned for this step."""
        return sum(chunk.count for chunk in self.chunks)
