"""Scheduler: who runs, how much, in which pages; exact plans and exact page ids."""

from __future__ import annotations

import pytest

from saccade.engine.errors import CapacityError, RequestError
from saccade.engine.pages import IntegrityError
from saccade.engine.request import RequestState
from saccade.engine.scheduler import LayerGroup, SchedulerLimits

from .fake_model import Bench, alone, make_request


def prompt(size: int, first: int = 0) -> list[int]:
    """Tokens unlike those of any other `first`."""
    return [first] * size


def test_one_request_from_prompt_to_end() -> None:
    bench = Bench(pages=4, page_size=4, budget=16)
    request = bench.add("a", prompt(6), max_tokens=4, ignore_eos=True)
    assert bench.step() == [("a", 0, 6)] and request.pages == [[0, 1]]
    assert bench.step() == [("a", 6, 1)]
    assert bench.step() == [("a", 7, 1)] and request.pages == [[0, 1]]
    assert bench.step() == [("a", 8, 1)]
    assert request.finish_reason == "length" and request.output == alone(request)
    bench.assert_empty()
    assert bench.scheduler.stats().idle_pages == (2,)  # two full pages stay cached


def test_a_prompt_is_read_in_chunks_of_the_budget() -> None:
    bench = Bench(pages=10, budget=8)
    bench.add("a", prompt(21), max_tokens=2, ignore_eos=True)
    steps = [bench.step() for _ in range(4)]
    assert steps == [[("a", 0, 8)], [("a", 8, 8)], [("a", 16, 5)], [("a", 21, 1)]]


def test_single_tokens_come_first_and_prompts_share_what_is_left() -> None:
    bench = Bench(pages=16, budget=8, share=1.0)
    bench.add("a", prompt(2, 0), ignore_eos=True)
    bench.step()
    bench.add("b", prompt(5, 1))
    bench.add("c", prompt(5, 2))
    assert bench.step() == [("a", 2, 1), ("b", 0, 5), ("c", 0, 2)]
    assert [chunk[0] for chunk in bench.step()] == ["a", "b", "c"]


def test_max_num_seqs_bounds_what_runs() -> None:
    bench = Bench(pages=16, seqs=2)
    for id in "abc":
        bench.add(id, prompt(2, ord(id)), max_tokens=2, ignore_eos=True)
    assert [id for id, *_ in bench.step()] == ["a", "b"]
    bench.step()
    assert [id for id, *_ in bench.step()] == ["c"]


def test_priority_then_arrival_then_order() -> None:
    bench = Bench(pages=16, seqs=1)
    for id, priority, arrival in (("d", 1, 0.0), ("c", 0, 2.0), ("b", 0, 1.0), ("a", -1, 9.0)):
        bench.add(id, prompt(2), priority=priority, arrival=arrival, max_tokens=1)
    bench.add("e", prompt(2), priority=1, arrival=0.0, max_tokens=1)
    assert [bench.step()[0][0] for _ in range(5)] == ["a", "b", "c", "d", "e"]


def test_an_urgent_newcomer_goes_before_a_prompt_that_is_being_read() -> None:
    bench = Bench(pages=16, budget=8, share=1.0)
    bench.add("slow", prompt(20, 1), arrival=0.0)
    bench.step()
    bench.add("fast", prompt(6, 2), arrival=1.0, priority=-1)
    assert bench.step() == [("fast", 0, 6), ("slow", 8, 2)]


class TestLongPrefills:
    """`long_prefill_share`: the long prompt leaves room for everybody else."""

    def bench(self, **more: float) -> Bench:
        return Bench(pages=64, budget=16, length=200, **{"share": 0.5, **more})  # type: ignore[arg-type]

    def test_alone_a_long_prompt_takes_the_whole_step(self) -> None:
        bench = self.bench()
        bench.add("long", prompt(60))
        assert bench.step() == [("long", 0, 16)]

    def test_a_short_request_gets_its_first_token_at_once(self) -> None:
        bench = self.bench()
        bench.add("long", prompt(100))
        bench.step()
        short = bench.add("short", prompt(8, 1), ignore_eos=True)
        assert bench.step() == [("long", 16, 8), ("short", 0, 8)]
        assert len(short.output) == 1
        assert bench.step() == [("short", 8, 1), ("long", 24, 8)]

    def test_several_long_prompts_share_one_share(self) -> None:
        bench = self.bench()
        for n, id in enumerate("ab"):
            bench.add(id, prompt(60, n))
        assert bench.step() == [("a", 0, 16)]  # nobody else has work: no need to hold back
        bench.add("short", prompt(3, 3), ignore_eos=True)
        assert bench.step() == [("a", 16, 8), ("short", 0, 3)]  # b waits, short goes past it
        assert bench.step() == [("short", 3, 1), ("a", 24, 8)]

    def test_a_short_request_behind_a_crowd_of_long_ones_is_still_found(self) -> None:
        bench = self.bench(seqs=64)
        for n in range(40):
            bench.add(f"{n}", prompt(60, n))
        bench.add("short", prompt(3, 99))
        assert bench.step() == [("0", 0, 8), ("short", 0, 3)]

    def test_its_own_children_do_not_hold_a_long_prompt_back(self) -> None:
        bench = self.bench()
        parent = bench.add("a", prompt(60))
        bench.add("a1", prompt(60), parent=parent)
        assert bench.step() == [("a", 0, 16)]

    @pytest.mark.parametrize("share", [0.01, 0.2])
    def test_even_a_tiny_share_makes_progress(self, share: float) -> None:
        bench = self.bench(share=share, align=4)
        bench.add("short", prompt(2, 1), ignore_eos=True, max_tokens=20)
        bench.step()
        bench.add("long", prompt(40))
        assert bench.step() == [("short", 2, 1), ("long", 0, 4)]


def test_chunks_begin_and_end_on_multiples_of_align() -> None:
    bench = Bench(pages=16, page_size=4, budget=10, align=6, share=1.0)
    bench.add("a", prompt(17), ignore_eos=True)
    assert [bench.step() for _ in range(3)] == [[("a", 0, 6)], [("a", 6, 6)], [("a", 12, 5)]]
    bench.add("b", prompt(9, 1))
    assert bench.step() == [("a", 17, 1), ("b", 0, 9)]
    bench.add("c", prompt(19, 2))
    assert bench.step()[-1] == ("c", 0, 6)


def test_nobody_overtakes_a_prompt_that_the_step_has_no_room_for() -> None:
    bench = Bench(pages=32, budget=8, align=8, share=1.0)
    bench.add("row", prompt(2, 1), ignore_eos=True, max_tokens=3)
    bench.step()
    bench.add("first", prompt(20, 2))
    bench.add("tiny", prompt(3, 3))
    assert bench.step() == [("row", 2, 1)]
    bench.step()
    assert bench.step() == [("first", 0, 8)]


class TestAdmission:
    def test_the_whole_prompt_must_fit_and_nobody_is_let_past(self) -> None:
        bench = Bench(pages=6, page_size=4, budget=64, seqs=8)
        bench.add("a", prompt(12, 0), max_tokens=3, ignore_eos=True)  # 3 pages, later 4
        bench.step()
        bench.add("big", prompt(16, 1))
        bench.add("tiny", prompt(1, 2))
        assert bench.step() == [("a", 12, 1)]
        assert bench.step() == [("a", 13, 1)]
        assert [id for id, *_ in bench.step()] == ["big", "tiny"]

    def test_pages_that_a_running_prompt_still_needs_are_not_promised_twice(self) -> None:
        bench = Bench(pages=8, page_size=4, budget=8, share=1.0)
        bench.add("a", prompt(20, 0))  # 5 pages, 2 of them taken by the first step
        bench.step()
        bench.add("b", prompt(12, 1))  # 3 pages: 6 are free now, but 3 are a's
        assert bench.step() == [("a", 8, 8)]

    def test_cached_pages_that_a_hit_takes_are_not_counted_as_room(self) -> None:
        bench = Bench(pages=6, page_size=4, budget=32)
        bench.add("old", prompt(12, 1), max_tokens=1)
        bench.step()  # leaves 3 idle pages
        bench.add("a", prompt(7, 0), ignore_eos=True)  # holds 2: 1 free and 3 idle are left
        bench.step()
        bench.add("b", [*prompt(12, 1), 0, 0, 0, 0])  # 3 of its 4 pages are the idle ones
        assert [id for id, *_ in bench.step()] == ["a"]  # one is left, but it is a's to grow

    def test_a_prefix_hit_is_shared_counted_and_skipped(self) -> None:
        bench = Bench(pages=8, page_size=4)
        bench.add("a", [0, 1, 2, 0, 1, 2, 0, 1, 2], max_tokens=1)
        bench.step()
        again = bench.add("b", [0, 1, 2, 0, 1, 2, 0, 1, 0], max_tokens=1)
        plan = bench.schedule()
        assert [(c.start, c.count) for c in plan.chunks] == [(8, 1)]
        assert again.pages[0][:2] == [0, 1] and again.num_cached == 8
        bench.scheduler.commit(plan, bench.model.run(plan))
        stats = bench.scheduler.stats()
        assert stats.hit_tokens == 8 and stats.lookup_tokens == 18
        assert stats.misses == {"first page unknown": 1, "partial page": 1}

    def test_without_prefix_caching_nothing_is_kept(self) -> None:
        bench = Bench(pages=8, prefix_caching=False)
        for id in "ab":
            bench.add(id, prompt(9), max_tokens=1)
            bench.drain()
        stats = bench.scheduler.stats()
        assert stats.free_pages == (8,) and stats.misses == {"disabled": 2}


class TestRefusals:
    def test_what_can_never_fit_is_refused_with_the_numbers(self) -> None:
        bench = Bench(pages=4, page_size=4, length=100)
        bench.add("fits", prompt(15))
        with pytest.raises(CapacityError, match=r"16 tokens.*the 16 tokens that the whole"):
            bench.add("not", prompt(16))
        bench = Bench(pages=99, length=10)
        with pytest.raises(RequestError, match="max_model_len=10") as caught:
            bench.add("not", prompt(10))
        assert caught.value.param == "prompt" and not bench.scheduler.has_work

    def test_bad_requests(self) -> None:
        bench = Bench()
        parent = bench.add("a", prompt(2))
        for bad in ([], [-1], [2**31]):
            with pytest.raises(RequestError):
                bench.add("b", bad)
        with pytest.raises(RequestError, match="already in use"):
            bench.add("a", prompt(2))
        with pytest.raises(RequestError, match="differ in their prompts"):
            bench.add("b", prompt(3), parent=parent)

    def test_a_child_needs_its_parent_in_the_queue_or_finished(self) -> None:
        bench = Bench()
        stranger = make_request("a", prompt(2))
        with pytest.raises(RequestError, match="parent of 'b' was not added"):
            bench.add("b", prompt(2), parent=stranger)
        bench.scheduler.add(stranger)
        bench.scheduler.abort("a")
        bench.add("b", prompt(2), parent=stranger)
        bench.drain()

    @pytest.mark.parametrize("pages, length, most", [(4, 100, 16), (99, 12, 12)])
    def test_output_is_clipped_to_what_fits(self, pages: int, length: int, most: int) -> None:
        bench = Bench(pages=pages, page_size=4, length=length)
        request = bench.add("a", prompt(10), max_tokens=None, ignore_eos=True)
        bench.drain()
        assert request.num_tokens == most and request.finish_reason == "length"

    @pytest.mark.parametrize(
        "change",
        [
            {"max_num_seqs": 0},
            {"align": 0},
            {"long_prefill_share": 0.0},
            {"long_prefill_share": float("nan")},
            {"max_num_batched_tokens": 7, "align": 8},
        ],
    )
    def test_limits_are_checked(self, change: dict[str, float]) -> None:
        good = {"max_num_seqs": 1, "max_num_batched_tokens": 8, "max_model_len": 8}
        with pytest.raises(ValueError):
            SchedulerLimits(**{**good, **change})  # type: ignore[arg-type]
        with pytest.raises(ValueError):
            LayerGroup(0)


class TestPreemption:
    def test_the_latest_gives_way_and_recomputes_from_the_cache(self) -> None:
        bench = Bench(pages=6, page_size=4, budget=32)
        first = bench.add("a", prompt(8, 0), max_tokens=9, ignore_eos=True, arrival=0.0)
        last = bench.add("b", prompt(8, 1), max_tokens=9, ignore_eos=True, arrival=1.0)
        while not last.num_preemptions:
            bench.step()
        assert first.num_preemptions == 0 and last.state is RequestState.WAITING
        assert last.pages == [] and last.num_computed == 0 and last.output
        bench.drain()
        assert first.output == alone(first) and last.output == alone(last)
        stats = bench.scheduler.stats()
        assert stats.preemptions == 1 and stats.hit_tokens >= 8
        assert last.num_cached == 0  # what the first admission found, not the resumption

    def test_priority_decides_before_arrival(self) -> None:
        bench = Bench(pages=6, page_size=4, budget=32)
        low = bench.add("low", prompt(8, 0), max_tokens=9, ignore_eos=True, priority=5)
        high = bench.add("high", prompt(8, 1), max_tokens=9, ignore_eos=True, arrival=9.0)
        bench.drain()
        assert (low.num_preemptions > 0, high.num_preemptions) == (True, 0)

    def test_whoever_is_last_gives_way_itself(self) -> None:
        bench = Bench(pages=5, page_size=4, budget=32)
        first = bench.add("a", prompt(11, 0), max_tokens=4, ignore_eos=True, arrival=0.0)
        last = bench.add("b", prompt(4, 1), max_tokens=8, ignore_eos=True, arrival=1.0)
        steps = [bench.step() for _ in range(4)]
        assert steps[2] == [("a", 12, 1), ("b", 5, 1)] or last.num_preemptions <= 1
        bench.drain()
        assert first.output == alone(first) and last.output == alone(last)

    def test_a_preempted_row_leaves_the_plan_it_was_already_in(self) -> None:
        bench = Bench(pages=[3, 8], windows=(4, None), page_size=4, budget=8, share=1.0)
        long = bench.add("long", prompt(20, 0), arrival=1.0)
        row = bench.add("row", prompt(3, 1), arrival=2.0, max_tokens=9, ignore_eos=True)
        bench.drain()
        assert long.output == alone(long) and row.output == alone(row)


class TestWindowGroups:
    def test_pages_behind_the_window_are_dropped_after_the_step(self) -> None:
        bench = Bench(pages=[8, 8], windows=(None, 4), page_size=4, budget=8)
        request = bench.add("a", prompt(18), ignore_eos=True, max_tokens=12)
        bench.step()
        assert request.pages == [[0, 1], [0, 1]]  # 8 computed: position 4 and later are needed
        bench.step()
        assert request.pages == [[0, 1, 2, 3], [-1, -1, 2, 3]]
        while request.num_tokens < 26:
            bench.step()
        assert request.num_computed == 25 and request.num_dropped == [0, 5]
        assert request.pages[1][:5] == [-1] * 5 and request.pages[0][:5] == [0, 1, 2, 3, 4]

    def test_a_small_window_pool_serves_long_prompts_in_smaller_chunks(self) -> None:
        bench = Bench(pages=[40, 3], windows=(None, 4), page_size=4, budget=32, length=100)
        request = bench.add("a", prompt(90), max_tokens=9, ignore_eos=True)
        assert bench.step() == [("a", 0, 4)]
        bench.drain()
        assert request.output == alone(request)

    def test_a_window_pool_too_small_for_any_chunk_is_refused(self) -> None:
        with pytest.raises(CapacityError, match=r"window of 9 tokens has 3 pages.* need 4 pages"):
            Bench(pages=[40, 3], windows=(None, 9), page_size=4, length=100)

    def test_the_pages_of_sinks_stay(self) -> None:
        bench = Bench(pages=[8], windows=((4, 5),), page_size=4, budget=8, length=100)
        request = bench.add("a", prompt(26), max_tokens=60, ignore_eos=True)
        while request.num_tokens < 70:
            bench.step()
            assert bench.scheduler.stats().used_pages[0] <= 2 + 3 + 1
        assert request.num_computed == 69 and request.num_dropped == [14]
        assert request.pages[0][2:16] == [-1] * 14 and min(request.pages[0][:2]) >= 0
        bench.drain()
        assert request.output == alone(request)

    def test_a_hit_uses_the_pages_of_all_groups(self) -> None:
        bench = Bench(pages=[16, 16], windows=(None, 5), page_size=4, budget=16)
        bench.add("a", prompt(17), max_tokens=1)
        bench.drain()
        request = bench.add("b", prompt(17), max_tokens=1)
        plan = bench.schedule()
        assert request.num_cached == 16
        assert request.pages[0][:4] == [0, 1, 2, 3] and request.pages[1][:4] == [-1, -1, 2, 3]
        bench.scheduler.commit(plan, bench.model.run(plan))


def test_stats_and_integrity() -> None:
    bench = Bench(pages=4)
    request = bench.add("a", prompt(6), ignore_eos=True)
    bench.step()
    stats = bench.scheduler.stats()
    assert (stats.running, stats.waiting, stats.used_pages) == (1, 0, (2,))
    assert stats.total_pages == (4,) and stats.free_pages == (2,) and stats.cached_pages == (1,)
    request.pages[0].pop()
    with pytest.raises(IntegrityError, match="lacks pages in group 0"):
        bench.scheduler.check_integrity()


def test_a_page_with_two_owners_and_one_reference_is_found() -> None:
    bench = Bench(pages=4)
    first, second = (bench.add(id, prompt(3, ord(id)), ignore_eos=True) for id in "ab")
    bench.step()
    second.pages[0][0] = first.pages[0][0]
    with pytest.raises(IntegrityError, match="page 0: 1 references, 2 owners"):
        bench.scheduler.check_integrity()
