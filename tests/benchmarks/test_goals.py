"""Goals beside figures: met, not met, not measured."""

from __future__ import annotations

from dataclasses import replace

from saccade.benchmarks.goals import Goal, kernel_goals, scratch_goal
from saccade.benchmarks.measure import Row

PREFILL = Row(
    op="attend",
    name="prefill",
    params={"T": 8192, "d": 64, "q": 8, "kv": 2},
    shape="T=8192 d=64",
    dtype="bf16",
    implementation="saccade amx",
    ours=True,
    seconds=0.1,
    spread=0.0,
    gbps=1.0,
    tflops=1.0,
    bound="matmul",
    share=0.6,
    peer="torch SDPA",
    ratio=1.3,
    ratio_spread=0.0,
)


def test_an_empty_run_has_measured_no_goal() -> None:
    goals = kernel_goals([], {}, threads=2)
    assert len(goals) == 8
    assert all(goal.met is None and "not measured" in goal.cells() for goal in goals)


def test_figures_find_their_goals() -> None:
    rows = [
        PREFILL,
        replace(PREFILL, params={**PREFILL.params, "d": 128}, ratio=1.0),
        replace(PREFILL, ours=False, ratio=None, share=0.1, implementation="torch"),
        replace(PREFILL, dtype="fp32", ratio=1.01),
    ]
    goals = kernel_goals(rows, {}, threads=2)
    assert [goal.met for goal in goals[:4]] == [True, False, True, None]
    assert goals[4].value == 0.6


def test_decode_takes_the_lesser_head_size() -> None:
    decode = [
        replace(PREFILL, name="decode", params={"batch": 8, "T": 32768, "d": d}, share=share)
        for d, share in ((64, 0.7), (128, 0.9))
    ]
    goals = {goal.name: goal for goal in kernel_goals(decode, {}, threads=2)}
    found = next(goal for name, goal in goals.items() if "batch 8" in name)
    assert (found.value, found.met) == (0.7, False)
    assert found.cells()[1:] == [">= 80 %", "70 %", "not met"]


def test_scratch_must_not_grow() -> None:
    assert scratch_goal({8192: 1000, 32768: 2000}, threads=2).met
    assert scratch_goal({8192: 2000, 32768: 1000}, threads=2).value == 0.0
    assert scratch_goal({8192: 1 << 20, 32768: 4 << 20}, threads=2).met is False
    assert scratch_goal({8192: None, 32768: 1000}, threads=2).met is None


def test_goals_where_less_is_better() -> None:
    goal = Goal("over the floor", 1.5, 1.4, "x", at_least=False)
    assert goal.met
    assert goal.cells() == ["over the floor", "<= 1.50x", "1.40x", "met"]
