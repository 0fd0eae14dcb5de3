"""The engine benchmark's arithmetic, with subjects whose speed is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from saccade.benchmarks import engine_rows
from saccade.benchmarks.engine_estimate import Curve, spare_rounds
from saccade.benchmarks.engine_rows import EngineRow, Floor, Plan, Trial
from saccade.benchmarks.llama_checkpoint import LlamaSize, write_llama
from saccade.benchmarks.roofline import Ceiling, Work
from saccade.engine.checkpoint.config_json import read_config


@dataclass
class Fake:
    """Takes `prefill` seconds a prompt token and `step` seconds a later token."""

    name: str
    prefill: float
    step: float
    tokens: tuple[int, ...] = (1, 2, 3)
    prompts: list[list[int]] = field(default_factory=list)

    def run(self, prompt: Sequence[int], steps: int) -> Trial:
        self.prompts.append(list(prompt))
        return Trial(self.prefill * len(prompt), self.step, self.tokens)


@pytest.fixture(scope="module")
def floor(tmp_path_factory: pytest.TempPathFactory) -> Floor:
    folder: Path = write_llama(tmp_path_factory.mktemp("llama"), LlamaSize.tiny())
    stream = Ceiling("stream", "read", lambda: None, Work(bytes=1e6))
    return Floor(read_config(folder), 2, stream)


def rows_of(floor: Floor, peer: Fake | None, limit: int = 10**6) -> list[EngineRow]:
    plan = Plan(contexts=(32, 128), steps=2, repeats=3, peer_max_context=limit)
    return engine_rows.measure(plan, [Fake("saccade", 0.01, 0.1)], peer, floor, lambda text: None)


def test_rates_and_ratios(floor: Floor) -> None:
    rows = rows_of(floor, Fake("transformers", 0.02, 0.4, tokens=(1, 2, 9)))
    ours, peer = rows[:2]
    assert [row.context for row in rows] == [32, 32, 128, 128]
    assert ours.prefill is not None and ours.prefill.value == pytest.approx(100)
    assert ours.decode is not None and ours.decode.value == pytest.approx(10)
    assert ours.prefill_ratio == pytest.approx(2) and ours.decode_ratio == pytest.approx(4)
    assert peer.prefill_ratio is None and not peer.ours
    assert ours.same_tokens == 2
    assert ours.over_floor is not None and ours.over_floor > 1


def test_a_peer_stays_below_its_context(floor: Floor) -> None:
    peer = Fake("transformers", 0.02, 0.4)
    rows = rows_of(floor, peer, limit=32)
    assert rows[1].prefill is not None
    assert rows[3] == EngineRow(128, "transformers", False, None, None)
    assert rows[2].prefill_ratio is None
    assert max(len(prompt) for prompt in peer.prompts) == 32
    table = engine_rows.table(rows, Plan((32, 128), 2, 3, 32), floor, 1e9).plain()
    assert "not measured" in table and "memory floor" in table


def test_no_peer(floor: Floor) -> None:
    rows = rows_of(floor, None)
    assert [row.implementation for row in rows] == ["saccade", "saccade"]
    assert rows[0].same_tokens is None


def test_prompts_differ_between_rounds_and_agree_between_subjects(floor: Floor) -> None:
    peer = Fake("transformers", 0.02, 0.4)
    rows_of(floor, peer)
    long = [prompt for prompt in peer.prompts if len(prompt) == 128]
    assert len({tuple(prompt) for prompt in long}) == 3
    assert all(0 <= token < 512 for prompt in long for token in prompt)


def test_floor_of_a_step(floor: Floor) -> None:
    grown = floor.step_bytes(200) - floor.step_bytes(100)
    assert grown == 2 * 2 * 2 * 16 * 2 * 100  # layers, K and V, heads, head size, bytes, tokens
    assert floor.step_seconds(100, 2.0) == pytest.approx(2 * floor.step_bytes(100) / 1e6)


def test_goals_need_the_standard_model() -> None:
    row = EngineRow(16384, "saccade", True, None, None, 2.0, 2.0, 1.2)
    assert [goal.met for goal in engine_rows.goals([row], True)] == [True, False, True]
    assert [goal.met for goal in engine_rows.goals([row], False)] == [None] * 3
    assert [goal.met for goal in engine_rows.goals([], True)] == [None] * 3


@dataclass
class Growing(Fake):
    """Attention grows with the context: prefill a T + b T^2, a step c + d T."""

    def run(self, prompt: Sequence[int], steps: int) -> Trial:
        self.prompts.append(list(prompt))
        n = len(prompt)
        return Trial(n * (self.prefill + 1e-5 * n), self.step + 1e-4 * n, self.tokens)


def test_a_slow_peer_is_extrapolated_and_the_table_says_so(floor: Floor) -> None:
    plan = Plan((128,), 2, 2, peer_max_context=32, peer_from=(16, 32))
    ours = [Fake("saccade", 0.01, 0.1), Fake("saccade, dense", 0.03, 0.4)]
    peer = Growing("transformers", 0.02, 0.4)
    rows = engine_rows.measure(plan, ours, peer, floor, lambda text: None)
    assert [len(prompt) for prompt in peer.prompts] == [64, 16, 16, 32, 32]  # a first call
    own, dense, other = rows
    assert other.extrapolated == (16, 32) and not own.extrapolated
    assert other.prefill is not None
    assert other.prefill.value == pytest.approx(1 / (0.02 + 1e-5 * 128))
    assert own.prefill_ratio == pytest.approx((0.02 + 1e-5 * 128) / 0.01)
    assert own.decode_ratio == pytest.approx((0.4 + 1e-4 * 128) / 0.1)
    assert own.same_tokens is None
    assert (own.prefill_dense, own.decode_dense) == (pytest.approx(3), pytest.approx(4))
    assert dense.prefill_dense is None and dense.ours
    text = engine_rows.table(rows, plan, floor, 1e9).plain()
    assert "transformers (extrapolated)" in text and "timed at 16, 32 tokens" in text
    assert text.count("memory floor") == 1 and "prefill x dense" in text


def test_noise_does_not_make_times_shrink_with_the_context() -> None:
    curve = Curve({16: Trial(1.0, 0.5, ()), 32: Trial(1.5, 0.4, ())})
    assert curve.trial(64) == Trial(pytest.approx(3.0), pytest.approx(0.4), ())


def test_rounds_are_left_out_where_time_is_short(floor: Floor) -> None:
    assert [spare_rounds(1, each) for each in (10.0, 29.0, 45.0, 600.0)] == [5, 1, 0, 0]
    told: list[str] = []
    plan = Plan((4096,), 1, 3, 10**6, minutes=1)
    engine_rows.measure(plan, [Fake("saccade", 0.01, 0.1)], None, floor, told.append)
    assert "a round of saccade may take 41 s" in told[0]
    assert any("3 of them are run" in each for each in told)  # a fake takes no time


def test_goals_at_64k_are_those_of_sparse_attention() -> None:
    row = EngineRow(65536, "saccade", True, None, None, 12.0, 14.0, 1.2, None, 5.5, 3.9)
    dense = EngineRow(65536, "saccade, dense", True, None, None, 1.0, 1.0)
    found = engine_rows.goals([dense, row], True, sparse=True)
    assert [goal.met for goal in found] == [True, True, False, False]
    assert [goal.met for goal in engine_rows.goals([row], False, sparse=True)] == [None] * 4
