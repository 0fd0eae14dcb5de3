"""The engine benchmark's arithmetic, with subjects whose speed is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from saccade.benchmarks import engine_rows
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
    return engine_rows.measure(plan, Fake("saccade", 0.01, 0.1), peer, floor, lambda text: None)


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
