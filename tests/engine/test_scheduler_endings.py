"""How requests end: stop rules on token ids, finish, abort and failure at any moment."""

from __future__ import annotations

from typing import Any, cast

import pytest

from saccade.engine.finish import finish_by_token
from saccade.engine.request import Request, RequestState

from .fake_model import EOS, Bench, Params, make_request


def ended(output: list[int], **params: Any) -> object:
    request = make_request("a", [0], Params(**params))
    request.output, request.max_output = output, 4
    return finish_by_token(request, {EOS})


@pytest.mark.parametrize(
    ("output", "params", "reason"),
    [
        ([0], {}, None),
        ([0, EOS], {}, ("stop", None)),
        ([0, EOS], {"ignore_eos": True}, None),
        ([0, 2], {"stop_token_ids": (2,)}, ("stop", 2)),
        ([0, EOS], {"stop_token_ids": (EOS,), "ignore_eos": True}, ("stop", EOS)),
        ([0, EOS], {"min_tokens": 2}, None),
        ([0, 0, EOS], {"min_tokens": 2}, ("stop", None)),
        ([0, 2], {"min_tokens": 2, "stop_token_ids": (2,)}, None),
        ([0, 0, 0, 0], {}, ("length", None)),
        ([0, 0, 0, EOS], {}, ("stop", None)),
        ([0, 0, 0, EOS], {"min_tokens": 4}, ("length", None)),
    ],
)
def test_rules_on_token_ids(output: list[int], params: dict[str, Any], reason: object) -> None:
    assert ended(output, **params) == reason


def running(pages: int = 8, **more: Any) -> tuple[Bench, Request]:
    bench = Bench(pages=pages, page_size=4)
    request = bench.add("a", [0] * 9, max_tokens=9, ignore_eos=True, **more)
    bench.step()
    return bench, request


def test_a_stop_token_ends_the_request_in_the_step_that_sampled_it() -> None:
    bench, request = running(stop_token_ids=(0, 1, 2, EOS))
    assert request.state is RequestState.FINISHED and request.finish_reason == "stop"
    assert request.stop_reason == request.output[0]
    bench.assert_empty()


def test_the_engine_ends_a_request_at_a_stop_string() -> None:
    bench, request = running()
    assert bench.scheduler.finish("a", "stop", "END")
    assert (request.finish_reason, request.stop_reason) == ("stop", "END")
    assert not bench.scheduler.finish("a", "stop") and not bench.scheduler.has_work
    bench.assert_empty()


@pytest.mark.parametrize("when", ["waiting", "before the run", "after the run", "between steps"])
def test_abort_at_any_moment_frees_everything(when: str) -> None:
    bench = Bench(pages=8, budget=32)
    request = bench.add("a", [0] * 9)
    other = bench.add("b", [1] * 9, max_tokens=2, ignore_eos=True)
    if when == "waiting":
        assert bench.scheduler.abort("a")
    elif when == "between steps":
        bench.step()
        assert bench.scheduler.abort("a")
    else:
        plan = bench.schedule()
        if when == "before the run":
            bench.scheduler.abort("a")
        sampled = bench.model.run(plan)
        bench.scheduler.abort("a")
        got = bench.scheduler.commit(plan, sampled)
        assert got == [other]
    assert request.finish_reason == "abort" and not bench.scheduler.abort("a")
    bench.scheduler.check_integrity()
    bench.drain()
    bench.assert_empty()


def test_a_failed_step_fails_its_requests_and_no_others() -> None:
    bench = Bench(pages=16, seqs=1)
    first, second = bench.add("a", [0] * 9), bench.add("b", [0] * 9)
    plan = bench.schedule()
    error = RuntimeError("boom")
    bench.scheduler.fail(plan, error)
    assert first.finish_reason == "error" and first.error is error
    assert bench.scheduler.commit(plan, {}) == []
    bench.drain()
    assert second.finish_reason in ("stop", "length") and second.num_cached == 0
    bench.assert_empty()
    assert bench.scheduler.stats().finished["error"] == 1


@pytest.mark.parametrize("publish, cached", [(False, 0), (True, 8)])
def test_a_row_that_was_nan_leaves_nothing_in_the_cache(publish: bool, cached: int) -> None:
    bench, request = running()
    plan = bench.schedule()
    bench.scheduler.fail_request("a", "NaN", publish=publish)
    bench.scheduler.commit(plan, {})
    assert request.error == "NaN"
    again = bench.add("b", [0] * 9)
    bench.step()
    assert again.num_cached == cached


def test_withdrawn_pages_stay_with_those_who_share_them() -> None:
    bench, _ = running()
    sharer = bench.add("b", [0] * 9, max_tokens=3, ignore_eos=True)
    bench.step()
    assert sharer.num_cached == 8
    bench.scheduler.fail_request("a", "NaN")
    bench.scheduler.check_integrity()
    bench.drain()
    bench.assert_empty()


def test_a_plan_is_committed_once_and_completely() -> None:
    bench = Bench()
    bench.add("a", [0] * 5, ignore_eos=True)
    plan = bench.schedule()
    with pytest.raises(ValueError, match="No token was sampled for a"):
        bench.scheduler.commit(plan, {})
    sampled = bench.model.run(plan)
    bench.scheduler.commit(plan, sampled)
    with pytest.raises(ValueError, match="stale"):
        bench.scheduler.commit(plan, sampled)


def test_the_state_machine_has_no_other_edges() -> None:
    request = make_request("a", [0])
    with pytest.raises(RuntimeError, match="is waiting, so it cannot become waiting"):
        request.preempt()
    request.start()
    with pytest.raises(RuntimeError, match="is running, so it cannot become running"):
        request.start()
    request.finish("abort")
    for move in (request.start, request.preempt, lambda: request.finish("stop")):
        with pytest.raises(RuntimeError):
            cast(Any, move)()


@pytest.mark.parametrize("start, stop", [(0, 0), (0, 2), (1, 3), (2, 5), (3, 5), (4, 5), (0, 5)])
def test_tokens_slices_prompt_and_output_as_one(start: int, stop: int) -> None:
    request = make_request("a", [5, 6, 7])
    request.output = [8, 9]
    assert request.tokens(start, stop) == [5, 6, 7, 8, 9][start:stop]
    assert "0/5 tokens" in repr(request)


def test_pages_that_a_window_left_behind_are_withdrawn_too() -> None:
    """They are still findable when their request turns out to be NaN."""
    bench = Bench(pages=[8], windows=[4], budget=4)
    bench.add("a", [0, 1, 2] * 5)
    for _ in range(3):
        bench.step()
    pool = bench.scheduler.tables.pools[0]
    assert bench.scheduler.requests["a"].num_dropped[0] > 0 and pool.num_cached == 3
    bench.scheduler.fail_request("a", "NaN")
    bench.scheduler.check_integrity()
    assert pool.num_cached == 0
