"""StepBuilder: the plan of one step while it is being made, and the rules of its token budget."""

from __future__ import annotations

from .request import Request
from .step_plan import Chunk, PageCopy, SchedulerLimits, StepPlan

# Deep in a long context a token costs many times what it costs at its start, so that a share of a
# step's tokens bounds nothing that a person feels. Chunks of long prompts are also bounded by the
# time they should take (s): this long while anybody else has work, and else as the limits say.
BESIDE_OTHERS_S = 0.1
LEAST_CHUNK = 32  # tokens; below, a chunk costs hardly less
# Looking up a long prompt costs a fraction of a millisecond; this many a step are tried in vain.
MAX_VAIN_LOOKUPS = 16


class StepBuilder:
    """Collects chunks and copies; decides how many tokens of a request may go into the step.

    max_chunk: tokens of one request at most, never below align. crowded: somebody besides long
    prefills has work, so that these must share `limits.long_tokens`.
    """

    def __init__(self, limits: SchedulerLimits, max_chunk: int, crowded: bool) -> None:
        self.admitting = True  # whether waiting requests may still be started in this step
        self.chunks: dict[str, Chunk] = {}
        self._copies: dict[str, list[PageCopy]] = {}
        self._limits = limits
        self._max_chunk = max_chunk
        self._budget = limits.max_num_batched_tokens
        self._long_tokens = limits.long_tokens
        self._long_budget = limits.long_tokens if crowded else limits.max_num_batched_tokens
        self._seconds = BESIDE_OTHERS_S if crowded else limits.alone_step_seconds
        self._paced = False  # whether a chunk that is bounded by its time is in the step
        self._vain_lookups = 0

    def is_spent(self, request: Request) -> bool:
        """Whether too few tokens are left for a chunk that has to end on a multiple of align."""
        return self._budget < request.policy.align

    def chunk_size(self, request: Request, start: int) -> int:
        """Tokens from `start` on to compute now; stops before the last only at a multiple of the
        policy's alignment.

        0: the budget, or the share of long prefills, has no room for them, or none for a whole text
        where texts must be.
        """
        align, end = request.policy.align, request.num_tokens
        room = min(self._budget, self._max_chunk)
        if end - start > self._long_tokens:
            room = min(room, self._long_budget)
        room = min(room, self._timely(request))
        if end - start <= room:
            return end - start
        if self._limits.whole_texts:
            return 0
        return max(0, (start + room) // align * align - start)

    def _timely(self, request: Request) -> int:
        """Tokens of a request that can be computed in the time that is left for long prompts; for
        the first of them never so few that it stands still.
        """
        if request.pace <= 0 or self._limits.whole_texts or request.remaining == 1:
            return self._budget
        count = int(min(self._seconds / request.pace, self._budget))
        return count if self._paced else max(count, LEAST_CHUNK, request.policy.align)

    def is_worth_a_lookup(self, request: Request) -> bool:
        """False for a long prompt if many such were tried and the share of long prefills is used.

        A prefix hit may make any of them short, but there can be thousands in the queue.
        """
        tried = self._vain_lookups >= MAX_VAIN_LOOKUPS
        return not tried or request.num_tokens <= self._long_tokens

    def pass_over(self) -> None:
        """A long prefill has to wait because others use up the share."""
        self._vain_lookups += 1

    def add(self, request: Request, count: int, copies: list[PageCopy]) -> None:
        """The request's next `count` tokens are part of the step, after these copies."""
        start = request.num_computed
        sample = start + count == request.num_tokens
        self.chunks[request.id] = Chunk(request, start, count, sample)
        self._copies[request.id] = copies
        self._budget -= count
        if request.remaining > self._long_tokens:
            self._long_budget -= count
        if request.pace > 0 and request.remaining > 1:
            self._paced = True
            self._seconds = max(0.0, self._seconds - count * request.pace)

    def drop(self, request: Request) -> None:
        """Takes a request out again whose pages somebody of higher rank needs."""
        chunk = self.chunks.pop(request.id, None)
        self._copies.pop(request.id, None)
        if chunk is not None:
            self._budget += chunk.count

    def plan(self) -> StepPlan:
        """The finished plan."""
        copies = [copy for part in self._copies.values() for copy in part]
        return StepPlan(list(self.chunks.values()), copies)
