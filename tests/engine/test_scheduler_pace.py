"""Chunks of long prompts are bounded by the time that they take, not only by their tokens."""

from __future__ import annotations

import pytest

from saccade.engine.step_builder import BESIDE_OTHERS_S, LEAST_CHUNK

from .fake_model import Bench, make_request

LONG = 1500
MILLI = 0.001
ALONE_S = 0.2


def told(bench: Bench, seconds_a_token: float) -> list[tuple[str, int, int]]:
    """One step, of which the scheduler is told that it took so long."""
    plan = bench.schedule()
    bench.scheduler.note_time(plan, seconds_a_token * sum(chunk.count for chunk in plan.chunks))
    bench.scheduler.commit(plan, bench.model.run(plan))
    return [(chunk.request.id, chunk.start, chunk.count) for chunk in plan.chunks]


def bench() -> Bench:
    return Bench(pages=3000, page_size=4, budget=512, share=1.0, length=5000, alone=ALONE_S)


def test_the_first_chunk_is_bounded_by_tokens_and_later_ones_by_time() -> None:
    made = bench()
    made.add("long", [1] * LONG, max_tokens=1)
    assert told(made, MILLI) == [("long", 0, 512)]
    count = round(ALONE_S / MILLI)
    assert told(made, MILLI) == [("long", 512, count)]
    assert told(made, 2 * MILLI) == [("long", 512 + count, count)]
    assert told(made, MILLI) == [("long", 512 + 2 * count, count // 2)]


def test_alone_it_is_not_bounded_unless_that_is_asked_for() -> None:
    made = Bench(pages=3000, page_size=4, budget=512, share=0.5, length=5000)
    made.add("long", [1] * LONG, max_tokens=1)
    for start in (0, 512, 1024):  # its end, which is short, is nobody else either
        assert told(made, 1.0) == [("long", start, min(512, LONG - start))]


def test_beside_others_it_takes_less_time() -> None:
    made = bench()
    made.add("long", [1] * LONG, max_tokens=1)
    told(made, MILLI)
    made.add("short", [2] * 20, max_tokens=40, ignore_eos=True)
    first = told(made, MILLI)
    assert ("short", 0, 20) in first
    (chunk,) = [each for each in first if each[0] == "long"]
    assert chunk[2] == pytest.approx(BESIDE_OTHERS_S / MILLI, abs=1)


def test_it_never_stands_still() -> None:
    made = bench()
    request = made.add("long", [1] * LONG, max_tokens=1)
    made.add("other", [2] * LONG, max_tokens=1)
    told(made, 1.0)
    for _ in range(LONG // LEAST_CHUNK + 2):
        if request.finish_reason is not None:
            break
        steps = told(made, 1.0)
        assert steps and steps[0][0] == "long" and steps[0][2] <= max(LEAST_CHUNK, 512)
    assert request.finish_reason == "length"


def test_fast_prompts_are_not_bounded() -> None:
    made = bench()
    made.add("long", [1] * LONG, max_tokens=1)
    assert [told(made, 1e-6)[0][2] for _ in range(2)] == [512] * 2


def test_a_deep_chunk_is_charged_for_its_depth() -> None:
    made = bench()
    deep, flat = make_request("deep", [1] * LONG), make_request("flat", [2] * 100)
    made.scheduler.add(deep)
    told(made, MILLI)
    made.scheduler.add(flat)
    plan = made.schedule()
    made.scheduler.note_time(plan, 1.0)
    assert deep.pace > flat.pace > 0
    used = sum(chunk.count * chunk.request.pace for chunk in plan.chunks)
    assert used == pytest.approx(1.0)
