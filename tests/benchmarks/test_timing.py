"""The timing of benchmarks: turns, medians, ratios inside a round."""

from __future__ import annotations

import time

import pytest

from saccade.benchmarks.timing import (
    Figure,
    Rotation,
    calls_per_sample,
    contenders,
    fastest,
    interleave,
    ratio,
)


def test_figure_is_median_and_half_the_quartile_distance() -> None:
    figure = Figure.of([1.0, 2.0, 3.0, 4.0, 5.0])
    assert figure.value == 3.0
    assert figure.spread == pytest.approx(1.0 / 3.0)
    assert Figure.of([2.0]) == Figure(2.0, 0.0)


def test_ratio_is_formed_inside_each_round() -> None:
    # A machine that halves its speed between rounds leaves the ratio alone.
    slow, fast = [2.0, 4.0, 8.0], [1.0, 2.0, 4.0]
    assert ratio(slow, fast) == Figure(2.0, 0.0)
    with pytest.raises(ValueError, match="zip"):
        ratio([1.0], [1.0, 2.0])


def test_rotation_takes_turns() -> None:
    seen: list[int] = []
    run = Rotation([lambda i=i: seen.append(i) for i in range(3)])
    for _ in range(7):
        run()
    assert seen == [0, 1, 2, 0, 1, 2, 0]


def test_candidates_run_in_turn() -> None:
    seen: list[str] = []

    def candidate(name: str) -> None:
        seen.append(name)
        time.sleep(0.001)

    runs = {name: lambda name=name: candidate(name) for name in "ab"}
    samples = interleave(runs, 3, least=0.0)
    assert [len(times) for times in samples.values()] == [3, 3]
    assert "".join(seen[-6:]) == "ababab"
    assert min(min(times) for times in samples.values()) >= 0.001


def test_short_calls_are_repeated_inside_a_sample() -> None:
    assert calls_per_sample(lambda: None, least=0.001) > 1
    assert calls_per_sample(lambda: time.sleep(0.002), least=0.001) == 1


def test_hopeless_candidates_leave_after_the_heat() -> None:
    runs = {"fast": lambda: time.sleep(0.002), "slow": lambda: time.sleep(0.1)}
    assert list(contenders(runs)) == ["fast"]
    assert list(contenders({"only": lambda: None})) == ["only"]
    assert fastest({"a": [3.0, 1.0, 3.0], "b": [2.0, 2.0, 2.0]}) == "b"
