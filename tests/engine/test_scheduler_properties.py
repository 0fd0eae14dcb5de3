"""Random traffic over tiny pools: same tokens as alone, no leak, no livelock, no contradiction."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from saccade.engine.errors import CapacityError, RequestError
from saccade.engine.kept_rule import KeptRule
from saccade.engine.pages import window_pages
from saccade.engine.request import Request, RequestState

from .fake_model import VOCABULARY, Bench, Policy, Window, alone

WINDOWS: list[tuple[Window, ...]] = [(None,), (None, 3), (5,), (None, 2, 7), (1, 4)]
WINDOWS += [((3, 2), None), ((2, 5),), (6, (1, 9))]
CROWDED: list[tuple[Window, ...]] = [(None,), (None, 6), (4,), (None, 3, 9), (None, (3, 6))]
KEPT = [
    *[None] * 3,
    KeptRule(3),
    KeptRule(2, percent=125, burst=3),
    KeptRule(3, appends=False),
    KeptRule(4, fixed=5, appends=False),
]
ODD_ACTIONS = ["abort", "abort before the run", "abort after the run", "fail"]
# What requests may ask for themselves, beside the bench's own.
POLICIES = [
    Policy("even", 2),
    Policy("threes", 3, lambda size: size),
    Policy("end", 1, lambda size: max(0, size - 3)),
    Policy("wide", 8, lambda size: max(0, size - 8)),
]


@st.composite
def benches(draw: st.DrawFn) -> Bench:
    """Pools from "just enough for one" to "roomy"; full groups, windows, kept tokens."""
    page_size = draw(st.sampled_from([1, 2, 4]))
    windows = draw(st.sampled_from(WINDOWS))
    align = draw(st.sampled_from([1, 1, 2, 3, 4, 8]))
    budget = draw(st.integers(align, align + 12))
    pages = []
    for window in windows:
        last, sinks = window if isinstance(window, tuple) else (window, 0)
        least = window_pages(last, align, page_size, sinks) if last else 3
        pages.append(draw(st.integers(least, least + 12)))
    kept = draw(st.sampled_from(KEPT))
    if kept:
        pages.append(draw(st.integers(2, 12)))
    return Bench(
        pages,
        windows,
        page_size,
        seqs=draw(st.integers(1, 5)),
        budget=budget,
        length=draw(st.integers(12, 40)),
        share=draw(st.sampled_from([0.1, 0.5, 1.0])),
        align=align,
        kept=kept,
        prefix_caching=draw(st.sampled_from([True, True, True, False])),
        tail=draw(st.sampled_from([None, lambda size: size, lambda size: max(0, size - 5)])),
    )


@dataclass
class Traffic:
    """Adds requests, breaks some, and remembers them all."""

    bench: Bench
    requests: list[Request]

    def add(self, draw: Any, clock: int) -> None:
        prompt = draw(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=20))
        if self.requests and draw(st.booleans()):  # prefixes and whole old conversations come back
            old = draw(st.sampled_from(self.requests))
            prompt = (old.prompt + old.output)[: draw(st.integers(1, 24))]
        common = {
            "priority": draw(st.integers(-1, 1)),
            "arrival": float(clock),
            "cache_salt": draw(st.sampled_from(["", "", "salt"])),
            "max_tokens": draw(st.none() | st.integers(1, 10)),
            "min_tokens": draw(st.integers(0, 3)),
            "ignore_eos": draw(st.booleans()),
            "stop_token_ids": draw(st.sampled_from([(), (1,)])),
            "prompt_logprobs": draw(st.sampled_from([None, None, None, None, 1])),
        }
        common["policy"] = draw(st.sampled_from([self.bench.policy] * 4 + POLICIES))
        parent = None
        for seed in range(draw(st.sampled_from([1, 1, 2, 4]))):
            id = f"{len(self.requests)}"
            try:
                request = self.bench.add(id, prompt, parent=parent, seed=seed, **common)
            except (RequestError, CapacityError):
                limits, tables = self.bench.limits, self.bench.scheduler.tables
                too_long = len(prompt) + 1 > min(limits.max_model_len, tables.max_tokens)
                room = min(limits.long_tokens, tables.max_chunk)
                assert too_long or common["policy"].align > room
                return
            self.requests.append(request)
            parent = parent or request

    def one_of_them(self, draw: Any) -> str:
        return str(draw(st.sampled_from(self.requests)).id) if self.requests else "nobody"

    def check(self) -> None:
        for request in self.requests:
            expected = alone(request)
            if request.finish_reason in ("stop", "length"):
                assert request.output == expected
                assert (request.finish_reason == "length") <= (
                    len(request.output) == request.max_output
                )
            else:
                assert request.finish_reason in ("abort", "error")
                assert request.output == expected[: len(request.output)]


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(bench=benches(), data=st.data())
def test_every_request_gets_the_tokens_it_would_get_alone(
    bench: Bench, data: st.DataObject
) -> None:
    traffic = Traffic(bench, [])
    scheduler = bench.scheduler
    actions = st.sampled_from([*["add"] * 4, *["step"] * 6, *ODD_ACTIONS])
    for clock in range(data.draw(st.integers(1, 25))):
        action = data.draw(actions)
        if action == "add":
            traffic.add(data.draw, clock)
        elif action == "abort":
            scheduler.abort(traffic.one_of_them(data.draw))
        elif scheduler.has_work:
            plan = bench.schedule()
            assert plan.chunks
            if action == "abort before the run":
                scheduler.abort(traffic.one_of_them(data.draw))
            sampled = bench.model.run(plan) if action != "fail" else {}
            if action == "abort after the run":
                scheduler.abort(traffic.one_of_them(data.draw))
            if action == "fail":
                scheduler.fail(plan, "boom", publish=False)
            scheduler.commit(plan, sampled)
        scheduler.check_integrity()
    bench.drain()
    bench.assert_empty()
    traffic.check()
    stats = scheduler.stats()
    for name in ("preemptions", "forks", "copies", "evictions", "hit_tokens"):
        event(f"{name}: {getattr(stats, name) > 0}")
    for reason in stats.misses:
        event(f"miss: {reason}")


@pytest.mark.parametrize("seed", range(14))
def test_a_crowd_with_common_prompts_and_siblings(seed: int) -> None:
    """More at a time than hypothesis draws: preemption, forks, copies and eviction all together."""
    rng = random.Random(seed)
    windows: tuple[Window, ...] = CROWDED[seed % len(CROWDED)]
    bench = Bench(
        12,
        windows,
        4,
        seqs=6,
        budget=24,
        length=48,
        share=0.4,
        align=1 + seed % 3,
        kept=KEPT[seed % len(KEPT)],
    )
    common = [rng.randrange(VOCABULARY) for _ in range(24)]
    requests: list[Request] = []
    for clock in range(40):
        tail = [rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 6))]
        parent = None
        policy = rng.choice([bench.policy, bench.policy, *POLICIES])
        for sibling in range(rng.choice([1, 1, 3])):
            request = bench.add(
                f"{clock}.{sibling}",
                common[: rng.randrange(24)] + tail if parent is None else parent.prompt,
                parent=parent,
                policy=policy,
                seed=sibling,
                priority=rng.randrange(2),
                arrival=float(clock),
                max_tokens=rng.randint(1, 24),
                ignore_eos=rng.random() < 0.7,
            )
            requests.append(request)
            parent = parent or request
        for _ in range(rng.randrange(4)):
            bench.step()
    bench.drain()
    bench.assert_empty()
    assert all(request.output == alone(request) for request in requests)
    stats = bench.scheduler.stats()
    assert min(stats.copies, stats.evictions, stats.hit_tokens) > 0
    assert (stats.forks > 0) == bench.scheduler.tables.only_grow
    assert stats.preemptions > 0 or None not in windows


@settings(max_examples=100, deadline=None)
@given(data=st.data(), pages=st.integers(3, 9), count=st.integers(2, 6))
def test_the_first_in_rank_is_never_preempted(data: st.DataObject, pages: int, count: int) -> None:
    bench = Bench(pages, page_size=2, seqs=count, budget=8)
    size = pages * 2 - 1
    for n in range(count):
        prompt = data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=size))
        bench.add(f"{n}", prompt, max_tokens=None, ignore_eos=True, arrival=float(n))
    while bench.scheduler.has_work:
        first = min(bench.scheduler.requests.values(), key=lambda request: request.rank)
        before = first.num_preemptions, first.num_computed
        bench.step()
        if first.state is not RequestState.FINISHED:
            assert first.num_preemptions == before[0] and first.num_computed > before[1]
    bench.assert_empty()
