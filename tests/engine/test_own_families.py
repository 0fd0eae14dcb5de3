"""Families that transformers does not have, against an independent model, however work is cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from saccade import RequestOutput

from .conftest import Checkpoints, Engines
from .engine_probe import Recorder, greedy, small_pool, some_tokens, tokens_of
from .minicpm_oracle import MiniCPMOracle
from .nsa_oracle import NsaOracle
from .own_oracle import Oracle
from .tiny_own import OWN

pytestmark = pytest.mark.usefixtures("one_thread")
LENGTHS = (70, 33, 16, 1)  # prompts of a batch; 33 and 16 lie at page borders


def check(folder: Path, recorder: Recorder, prompt: list[int], output: RequestOutput) -> None:
    """Every row that was computed, and the greedy tokens."""
    tokens = tokens_of(output)[0]
    own = {"minicpm": MiniCPMOracle, "nsa": NsaOracle}
    oracle = own.get(folder.name.rstrip("0123456789").split("_")[0], Oracle)
    truth = oracle(folder).logits([*prompt, *tokens][:-1], len(prompt))
    rows = recorder.rows[f"{output.request_id}-0"]
    assert max(rows) == truth.shape[0] - 1
    for position, row in rows.items():
        assert float((row - truth[position]).abs().max() / truth.abs().max()) < 1e-4, position
    assert tokens == truth[len(prompt) - 1 :].argmax(-1).tolist()


def check_batch(
    folder: Path, make_engine: Engines, lengths: tuple[int, ...], **options: Any
) -> Any:
    engine = make_engine(folder, **options)
    recorder = Recorder(engine)
    prompts = [some_tokens(length, seed=length) for length in lengths]
    outputs = engine.generate(prompts, greedy(6))
    for prompt, output in zip(prompts, outputs, strict=True):
        check(folder, recorder, prompt, output)
    return engine, recorder


@pytest.mark.parametrize("family", OWN)
def test_in_one_shot_in_chunks_and_in_batches(
    checkpoint: Checkpoints, make_engine: Engines, family: str
) -> None:
    folder = checkpoint(family)
    check_batch(folder, make_engine, (70,))
    for budget in (1, 7, 33):
        _, recorder = check_batch(folder, make_engine, (70,), max_num_batched_tokens=budget)
        assert max(recorder.counts) == budget
    for budget in (24, 512):
        check_batch(folder, make_engine, LENGTHS, max_num_batched_tokens=budget, max_num_seqs=3)


@pytest.mark.parametrize("family", OWN)
def test_after_a_prefix_hit(checkpoint: Checkpoints, make_engine: Engines, family: str) -> None:
    folder = checkpoint(family)
    engine, recorder = check_batch(folder, make_engine, (70,))
    longer = some_tokens(70, seed=70) + some_tokens(9)
    output = engine.generate(longer, greedy(6))[0]
    assert output.num_cached_tokens == 64
    check(folder, recorder, longer, output)


@pytest.mark.parametrize("family", OWN)
def test_after_preemption(checkpoint: Checkpoints, make_engine: Engines, family: str) -> None:
    folder = checkpoint(family)
    options = small_pool(folder, 6, max_num_batched_tokens=40, max_num_seqs=6)
    engine = make_engine(folder, **options)
    recorder = Recorder(engine)
    prompts = [some_tokens(14, seed) for seed in range(6)]
    outputs = engine.generate(prompts, greedy(40))
    assert sum(output.stats["preemptions"] for output in outputs) > 0
    for prompt, output in zip(prompts, outputs, strict=True):
        check(folder, recorder, prompt, output)
