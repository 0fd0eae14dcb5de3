"""A model made of integers: its K/V is the token prefix itself, and the policy under which it was
computed, so every mix-up of pages shows.

Groups of kept tokens have two heads, whose choice depends on the prefix alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import inf
from typing import Any, cast

from saccade.engine.kept_rule import KeptRule
from saccade.engine.request import Request
from saccade.engine.scheduler import LayerGroup, Scheduler, SchedulerLimits, StepPlan

VOCABULARY = 3  # few tokens, so that prompts share prefixes and outputs meet other prompts
EOS = VOCABULARY


@dataclass(frozen=True)
class Params:
    """What the scheduler reads of SamplingParams, and a seed that tells siblings apart."""

    max_tokens: int | None = 4
    min_tokens: int = 0
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    prompt_logprobs: int | None = None
    pooling: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class Policy:
    """What the scheduler knows of an attention policy; `depends`: its `tail`, `way`: its modes."""

    name: str = "dense"
    align: int = 1
    depends: Callable[[int], int] | None = None
    way: Callable[[int], str] | None = None

    def key(self, prompt_len: int) -> str:
        return self.name + (self.way(prompt_len) if self.way else "")

    def tail(self, prompt_len: int) -> int | None:
        return None if self.depends is None else self.depends(prompt_len)


def make_request(
    id: str,
    prompt: Sequence[int],
    params: Params | None = None,
    policy: Policy | None = None,
    **more: Any,
) -> Request:
    return Request(id, list(prompt), cast(Any, params or Params()), policy or Policy(), **more)


def next_token(tokens: Sequence[int], seed: int) -> int:
    """What the fake model samples after `tokens`: any token, now and then the end of sequence."""
    value = seed + 1
    for token in tokens:
        value = (value * 31 + token + 7) % 10007
    return EOS if value % 11 == 0 else value % VOCABULARY


def alone(request: Request) -> list[int]:
    """The output the request must have, worked out without any scheduler."""
    params = cast(Params, request.params)
    output: list[int] = []
    while len(output) < request.max_output:
        output.append(next_token(request.prompt + output, params.seed))
        stops = output[-1] in params.stop_token_ids
        ends = output[-1] == EOS and not params.ignore_eos
        if len(output) > params.min_tokens and (stops or ends):
            break
    return output


HEADS = (0, 1)  # of groups of kept tokens


@lru_cache(maxsize=100_000)
def kept_slots(rule: KeptRule, tokens: tuple[int, ...], head: int) -> tuple[int | None, ...]:
    """Where in its list a head keeps each token, if it does."""
    slots: list[int | None] = []
    length = 0
    for t in range(len(tokens)):
        value = next_token(tokens[: t + 1], 17 * head + 3) + 5 * sum(tokens[: t + 1])
        most = rule.most(t + 1)
        wanted = value % (2 + head) > 0 if rule.appends else length < most
        if wanted and length < most:
            slots.append(length)
            length += 1
        else:
            replaces = not rule.appends and value % 2
            slots.append(value % length if replaces else None)
    return tuple(slots)


def kv(request: Request, position: int) -> tuple[Any, ...]:
    """All that the K/V of a position depends on."""
    tail, size = request.policy.tail(len(request.prompt)), len(request.prompt)
    ends = size if tail is not None and position >= tail else None
    return (request.policy.key(size), ends, *request.tokens(0, position + 1))


@dataclass
class FakeModel:
    """Page memory: (group, page) -> slot -> what `kv` was when it was written.

    A slot is an offset, or (head, offset) of kept tokens.
    """

    groups: Sequence[LayerGroup]
    page_size: int
    memory: dict[tuple[int, int], dict[Any, tuple[Any, ...]]] = field(default_factory=dict)

    def run(self, plan: StepPlan) -> dict[str, int]:
        """Copies, writes and checks what every chunk would read; returns the sampled tokens."""
        targets = [(g, target) for g, _, target in plan.copies]
        assert len(set(targets)) == len(targets)
        for n, (g, source, _) in enumerate(plan.copies):
            assert (g, source) not in targets[:n]
        # As one gather and one scatter, which the plan promises to be enough.
        read = [dict(self.memory.get((g, source), {})) for g, source, _ in plan.copies]
        self.memory.update(zip(targets, read, strict=True))
        written: dict[tuple[int, int, Any], Request] = {}
        for chunk in plan.live:
            for position in range(chunk.start, chunk.start + chunk.count):
                self._write(chunk.request, position, written)
        sampled = {}
        for chunk in plan.live:
            end = chunk.start + chunk.count
            self._check(chunk.request, chunk.start, end)
            if chunk.sample:
                assert end == chunk.request.num_tokens
                seed = cast(Params, chunk.request.params).seed
                sampled[chunk.request.id] = next_token(chunk.request.tokens(0, end), seed)
        return sampled

    def _write(
        self, request: Request, position: int, written: dict[tuple[int, int, Any], Request]
    ) -> None:
        for g, group in enumerate(self.groups):
            places: list[tuple[Any, int]] = [(None, position)]
            if group.kept is not None:
                prefix = tuple(request.tokens(0, position + 1))
                kept = [(head, kept_slots(group.kept, prefix, head)[-1]) for head in HEADS]
                places = [(head, slot) for head, slot in kept if slot is not None]
            for head, place in places:
                page, offset = request.pages[g][place // self.page_size], place % self.page_size
                slot = offset if head is None else (head, offset)
                writer = written.setdefault((g, page, slot), request)
                assert page >= 0 and writer is request, "two chunks write the same slot"
                self.memory.setdefault((g, page), {})[slot] = kv(request, position)

    def _check(self, request: Request, start: int, end: int) -> None:
        for g, group in enumerate(self.groups):
            if group.kept is not None:
                self._check_kept(g, group.kept, request, end)
                continue
            first = group.first_needed(start)
            for position in (*range(min(group.sinks, first)), *range(first, end)):
                page = request.pages[g][position // self.page_size]
                found = self.memory.get((g, page), {}).get(position % self.page_size)
                assert found == kv(request, position), (request, g, position)

    def _check_kept(self, g: int, rule: KeptRule, request: Request, end: int) -> None:
        """The lists, as they are after position end - 1."""
        tokens = tuple(request.tokens(0, end))
        for head in HEADS:
            expected: dict[int, tuple[Any, ...]] = {}
            for position, slot in enumerate(kept_slots(rule, tokens, head)):
                if slot is not None:
                    expected[slot] = kv(request, position)
            for slot, wanted in expected.items():
                page = request.pages[g][slot // self.page_size]
                found = self.memory.get((g, page), {}).get((head, slot % self.page_size))
                assert found == wanted, (request, g, head, slot)


Window = int | tuple[int, int] | None  # of a layer group, perhaps with sinks


def layer_group(window: Window) -> LayerGroup:
    return LayerGroup(*window) if isinstance(window, tuple) else LayerGroup(window)


class Bench:
    """A scheduler and its fake model; every step is checked."""

    def __init__(
        self,
        pages: int | Sequence[int] = 8,
        windows: Sequence[Window] = (None,),
        page_size: int = 4,
        *,
        seqs: int = 4,
        budget: int = 16,
        length: int = 64,
        share: float = 0.5,
        align: int = 1,
        tail: Callable[[int], int] | None = None,
        kept: KeptRule | None = None,
        alone: float = inf,
        **more: Any,
    ) -> None:
        """kept: the rule of one more group, of kept tokens. alone: limits.alone_step_seconds."""
        self.policy = Policy("dense", align, tail)  # of requests that come without
        self.limits = SchedulerLimits(seqs, budget, length, share, align, alone_step_seconds=alone)
        self.groups = [layer_group(window) for window in windows]
        self.groups += [LayerGroup(kept=kept)] if kept else []
        counts = [pages] * len(self.groups) if isinstance(pages, int) else pages
        self.scheduler = Scheduler(
            self.limits, self.groups, counts, page_size, eos_token_ids={EOS}, **more
        )
        self.model = FakeModel(self.groups, page_size)

    def add(self, id: str, prompt: Sequence[int], **more: Any) -> Request:
        """`more`: fields of Params or of Request."""
        names = {name: more.pop(name) for name in list(more) if name in Params.__annotations__}
        policy = more.pop("policy", self.policy)
        request = make_request(id, prompt, Params(**names), policy, **more)
        self.scheduler.add(request)
        return request

    def schedule(self) -> StepPlan:
        plan = self.scheduler.schedule()
        self.scheduler.check_integrity()
        self.check_plan(plan)
        return plan

    def step(self) -> list[tuple[str, int, int]]:
        """One step; returns (id, start, count) of its chunks."""
        plan = self.schedule()
        self.scheduler.commit(plan, self.model.run(plan))
        self.scheduler.check_integrity()
        return [(chunk.request.id, chunk.start, chunk.count) for chunk in plan.chunks]

    def drain(self, limit: int = 2000) -> None:
        """Steps until nothing is left."""
        for _ in range(limit):
            if not self.scheduler.has_work:
                return
            assert self.step(), "an empty plan with work to do"
        raise AssertionError(f"no end after {limit} steps")

    def check_plan(self, plan: StepPlan) -> None:
        limits = self.limits
        assert plan.num_tokens <= limits.max_num_batched_tokens
        assert len(plan.chunks) <= limits.max_num_seqs
        assert len({chunk.request.id for chunk in plan.chunks}) == len(plan.chunks)
        for chunk in plan.chunks:
            end, align = chunk.start + chunk.count, chunk.request.policy.align
            assert chunk.start == chunk.request.num_computed and chunk.count > 0
            assert chunk.sample == (end == chunk.request.num_tokens)
            if chunk.request.remaining > 1:
                assert chunk.start % align == 0
            assert end % align == 0 or chunk.sample

    def assert_empty(self) -> None:
        """No request, and no page that is not free or idle."""
        assert not self.scheduler.has_work
        assert self.scheduler.stats().used_pages == (0,) * len(self.groups)
