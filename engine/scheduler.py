"""Scheduler: which tokens of which requests run in the next step. It never sees a tensor.

A step is three calls: `plan = schedule()`, run it, `commit(plan, sampled)`. Requests are served by
rank: priority (lower first), then arrival. Three rules guarantee progress: pages are taken only
from requests of lower rank; nobody is admitted past a request that is waiting for memory; and a
request that could not finish with all memory to itself is refused at the door.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from .admission import awaits_parent, check_request, rank
from .errors import RequestError
from .finish import finish_by_token
from .page_tables import PageTables
from .pages import IntegrityError
from .prefix import PrefixHasher
from .request import FinishReason, Request, RequestState
from .stats import SchedulerStats
from .step_builder import StepBuilder
from .step_plan import Chunk, LayerGroup, SchedulerLimits, StepPlan

# Keys whose attention costs about as much as everything else that a token needs.
_FLAT = 1024

__all__ = ["Chunk", "LayerGroup", "Scheduler", "SchedulerLimits", "StepPlan"]


class Scheduler:
    """Continuous batching, chunked prefill, prefix reuse, forks and preemption over paged memory.

    model_id: names the weights in every prefix-cache key, beside a request's attention policy.
    """

    def __init__(
        self,
        limits: SchedulerLimits,
        groups: Sequence[LayerGroup],
        pages_per_group: Sequence[int],
        page_size: int,
        *,
        model_id: str = "",
        eos_token_ids: Collection[int] = (),
        prefix_caching: bool = True,
    ) -> None:
        hasher = PrefixHasher(page_size, model_id)
        self.limits = limits
        self.tables = PageTables(limits, groups, pages_per_group, hasher, prefix_caching)
        self.requests: dict[str, Request] = {}
        self.waiting: list[Request] = []  # both lists are sorted by rank
        self.running: list[Request] = []
        self._eos = frozenset(eos_token_ids)
        self._num_added = 0
        self._num_preemptions = 0
        self._num_forks = 0
        self._finished: Counter[str] = Counter()

    @property
    def has_work(self) -> bool:
        """Whether any request is unfinished; then `schedule` never returns an empty plan."""
        return bool(self.requests)

    def add(self, request: Request) -> None:
        """Queues a new request.

        Raises RequestError for a bad one and CapacityError for one that can never fit.
        """
        if request.id in self.requests:
            raise RequestError(f"Request id {request.id!r} is already in use.", "request_id")
        parent = request.parent
        done = parent is None or parent.state is RequestState.FINISHED
        if parent is not None and not done and self.requests.get(parent.id) is not parent:
            raise RequestError(f"The parent of {request.id!r} was not added before.", "parent")
        check_request(request, self.limits, self.tables.max_tokens, self.tables.max_chunk)
        room = self.tables.max_tokens - len(request.prompt)
        wanted = request.params.max_tokens
        request.max_output = room if wanted is None else min(room, wanted)
        request.rank = (request.priority, request.arrival, self._num_added)
        self._num_added += 1
        self.requests[request.id] = request
        insort(self.waiting, request, key=rank)

    def schedule(self) -> StepPlan:
        """Plans the next step; its pages are allocated when this returns."""
        step = StepBuilder(self.limits, self.tables.max_chunk, self._is_crowded())
        self._fork_children()
        for request in [request for request in self.running if request.remaining == 1]:
            self._plan(step, request)
        prefills = [request for request in self.running if request.remaining > 1]
        can_start = self.waiting if len(self.running) < self.limits.max_num_seqs else []
        for request in sorted([*prefills, *can_start], key=rank):
            if request.state is RequestState.RUNNING:
                self._plan(step, request)
            elif step.admitting:
                self._admit(step, request)
        return step.plan()

    def _is_crowded(self) -> bool:
        """Whether anybody but long prefills could use tokens of this step. (Who is alone takes time
        from nobody, also at the end of a long prompt.)
        """
        requests = (*self.running, *self.waiting)
        return len(requests) > 1 and any(
            not self.limits.is_long(request.remaining) and not awaits_parent(request)
            for request in requests
        )

    def _fork_children(self) -> None:
        """Admits children of n > 1 whose parent has read the prompt, as long as they are next.

        This comes before any planning, so that a page is never shared in the step that copies it.
        """
        for request in list(self.waiting):
            if len(self.running) >= self.limits.max_num_seqs:
                return
            if awaits_parent(request):
                continue
            parent = self._fork_source(request)
            if parent is None or not self._has_room_for_copy():
                return
            self.tables.fork(request, parent)
            self._start(request)
            self._num_forks += 1

    def _fork_source(self, request: Request) -> Request | None:
        parent = request.parent
        if parent is None or request.output or parent.state is not RequestState.RUNNING:
            return None
        return parent if self.tables.can_fork(request, parent) else None

    def _has_room_for_copy(self) -> bool:
        needed = len(self.running) + 1  # everybody running may need a page in this step
        return all(pool.num_available >= needed for pool in self.tables.pools)

    def _admit(self, step: StepBuilder, request: Request) -> None:
        """Starts a waiting request if all of it fits; else nobody after it is admitted either."""
        if awaits_parent(request) or not step.is_worth_a_lookup(request):
            return
        hit = self.tables.cache.lookup(request)
        count = step.chunk_size(request, hit.num_pages * self.tables.page_size)
        if count == 0 and not step.is_spent(request):
            step.pass_over()  # the share of long prefills is used up: others may go first
            return
        full = len(self.running) >= self.limits.max_num_seqs
        forks = self._fork_source(request) is not None  # in the next step, at no cost
        if count == 0 or full or forks or not self.tables.fits(request, hit, self.running):
            step.admitting = False
            return
        self.tables.admit(request, hit)
        self._start(request)
        self._plan(step, request)

    def _plan(self, step: StepBuilder, request: Request) -> None:
        """Adds a running request's next chunk, taking pages from lower ranks if there are none."""
        if request.state is not RequestState.RUNNING:
            return  # preempted in this very step
        start = request.num_computed
        count = step.chunk_size(request, start)
        if count == 0:
            step.admitting = step.admitting and not step.is_spent(request)
            return
        while (copies := self.tables.grow(request, start + count)) is None:
            victim = self.running[-1]
            self._preempt(step, victim)
            if victim is request:
                return
        step.add(request, count, copies)

    def _start(self, request: Request) -> None:
        self.waiting.remove(request)
        request.start()
        insort(self.running, request, key=rank)

    def _preempt(self, step: StepBuilder, request: Request) -> None:
        """Back to waiting, by recomputation; full pages stay cached until somebody needs them."""
        step.drop(request)
        step.admitting = False
        self.running.remove(request)
        self.tables.release(request)
        request.preempt()
        insort(self.waiting, request, key=rank)
        self._num_preemptions += 1

    def commit(self, plan: StepPlan, sampled: Mapping[str, int]) -> list[Request]:
        """Takes over a step that ran; returns the requests that got a token, in plan order.

        `sampled`: a token id per chunk with `sample`. Requests that ended meanwhile are skipped.
        """
        chunks = plan.live
        missing = [c.request.id for c in chunks if c.sample and c.request.id not in sampled]
        if missing:
            raise ValueError(f"No token was sampled for {', '.join(missing)}.")
        if any(c.start != c.request.num_computed for c in chunks):
            raise ValueError("The plan is stale: a step was committed twice or out of order.")
        for chunk in chunks:
            self.tables.commit(chunk.request, chunk.start + chunk.count)
            if chunk.sample:
                self._append(chunk.request, sampled[chunk.request.id])
        return [chunk.request for chunk in chunks if chunk.sample]

    def _append(self, request: Request, token: int) -> None:
        request.output.append(token)
        if (end := finish_by_token(request, self._eos)) is not None:
            self._finish(request, end[0], end[1])

    def note_time(self, plan: StepPlan, seconds: float) -> None:
        """A step has taken so long: what it says of the next chunks of the prompts in it.

        A chunk's part of the time goes by its tokens and by how deep in their context they lie.
        """
        weights = [chunk.count * (chunk.start + chunk.count + _FLAT) for chunk in plan.chunks]
        whole = sum(weights)
        for chunk, weight in zip(plan.chunks, weights, strict=True):
            if chunk.count > 1:
                chunk.request.pace = seconds * weight / whole / chunk.count

    def finish(self, request_id: str, reason: FinishReason, stop: int | str | None = None) -> bool:
        """Ends a request for a reason found outside (a stop string); False if it is not here."""
        request = self.requests.get(request_id)
        if request is not None:
            self._finish(request, reason, stop)
        return request is not None

    def abort(self, request_id: str) -> bool:
        """Ends a request at any time, also between schedule and commit; False if it is not here."""
        return self.finish(request_id, "abort")

    def fail(self, plan: StepPlan, error: BaseException | str, publish: bool = False) -> None:
        """Ends the requests of a step that raised; see `fail_request`."""
        for chunk in plan.chunks:
            if chunk.request.state is not RequestState.FINISHED:
                self.fail_request(chunk.request.id, error, publish)

    def fail_request(
        self, request_id: str, error: BaseException | str, publish: bool = False
    ) -> None:
        """Ends one request with an error; call it before `commit` for one whose row was NaN.

        Its pages leave the prefix cache unless `publish` says that what is in them is sound.
        """
        request = self.requests.get(request_id)
        if request is not None:
            request.error = error
            self._finish(request, "error", trusted=publish)

    def _finish(
        self,
        request: Request,
        reason: FinishReason,
        stop: int | str | None = None,
        trusted: bool = True,
    ) -> None:
        queue = self.running if request.state is RequestState.RUNNING else self.waiting
        queue.remove(request)
        del self.requests[request.id]
        self.tables.release(request, trusted)
        request.finish(reason, stop)
        self._finished[reason] += 1

    def check_integrity(self) -> None:
        """Raises IntegrityError on any contradiction between queues, requests and pages."""
        for queue, state in ((self.running, "running"), (self.waiting, "waiting")):
            if sorted(queue, key=rank) != queue or any(r.state.value != state for r in queue):
                raise IntegrityError(f"The {state} queue is out of order or holds others: {queue}.")
        if {r.id for r in (*self.running, *self.waiting)} != set(self.requests):
            raise IntegrityError("The queues and the table of requests differ.")
        if any(request.pages or request.num_computed for request in self.waiting):
            raise IntegrityError("A waiting request holds pages.")
        if len(self.running) > self.limits.max_num_seqs:
            raise IntegrityError(f"{len(self.running)} requests are running, too many.")
        self.tables.check_integrity(self.running)

    def stats(self) -> SchedulerStats:
        """Counts for metrics, as of now."""
        pools, cache = self.tables.pools, self.tables.cache
        return SchedulerStats(
            running=len(self.running),
            waiting=len(self.waiting),
            total_pages=tuple(pool.num_pages for pool in pools),
            free_pages=tuple(pool.num_free for pool in pools),
            idle_pages=tuple(pool.num_idle for pool in pools),
            cached_pages=tuple(pool.num_cached for pool in pools),
            evictions=sum(pool.num_evictions for pool in pools),
            lookup_tokens=cache.lookup_tokens,
            hit_tokens=cache.hit_tokens,
            misses=dict(cache.misses),
            preemptions=self._num_preemptions,
            forks=self._num_forks,
            copies=self.tables.num_copies,
            finished=dict(self._finished),
        )
