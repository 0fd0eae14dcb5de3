"""The whole engine against transformers: every family and rotary type, however the work is cut."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from .conftest import Checkpoints, Engines
from .engine_probe import Recorder, greedy, small_pool, some_tokens, tokens_of
from .tiny import FAMILIES

pytestmark = pytest.mark.usefixtures("one_thread")

ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_theta": 500.0},
    "linear": {"rope_theta": 10000.0, "factor": 4.0},
    "dynamic": {"rope_theta": 10000.0, "factor": 2.0},
    "llama3": {
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": {"rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32},
}
LENGTHS = (70, 33, 16, 1)  # prompts of a batch; 33 and 16 lie at page borders


@lru_cache(maxsize=2)
def oracle(folder: Path, dtype: torch.dtype) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager"
    )


def theirs(folder: Path, tokens: list[int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    with torch.no_grad():
        return oracle(folder, dtype)(torch.tensor([tokens])).logits[0].float()


def assert_as_theirs(folder: Path, sequence: list[int], recorder: Recorder, id: str) -> None:
    """All rows that were computed agree; the sampled tokens are the most likely ones."""
    rows = recorder.rows[id]
    expected = theirs(folder, sequence[:-1])
    assert max(rows) == len(sequence) - 2
    actual = torch.stack([rows[position] for position in sorted(rows)])
    wanted = expected[sorted(rows)]
    error = (actual - wanted).abs().max() / wanted.abs().max()
    assert error < 1e-4, f"relative error {error:.2e}"


def check_batch(
    folder: Path, make_engine: Engines, lengths: tuple[int, ...] = LENGTHS, **options: Any
) -> Any:
    """Greedy answers to prompts of these lengths in one engine, all compared; returns it."""
    engine = make_engine(folder, **options)
    recorder = Recorder(engine)
    prompts = [some_tokens(length, seed=length) for length in lengths]
    outputs = engine.generate(prompts, greedy(6))
    for prompt, output in zip(prompts, outputs, strict=True):
        tokens = tokens_of(output)[0]
        assert_as_theirs(folder, prompt + tokens, recorder, f"{output.request_id}-0")
        best = theirs(folder, prompt + tokens)[len(prompt) - 1 : -1].argmax(-1)
        assert tokens == best.tolist()
    return engine, recorder


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_in_one_shot_in_chunks_and_in_batches(
    checkpoint: Checkpoints, make_engine: Engines, family: str
) -> None:
    folder = checkpoint(family)
    check_batch(folder, make_engine, (70,))
    for budget in (1, 7, 16, 33):
        _, recorder = check_batch(folder, make_engine, (70,), max_num_batched_tokens=budget)
        assert max(recorder.counts) == budget
    for budget in (24, 512):
        check_batch(folder, make_engine, max_num_batched_tokens=budget, max_num_seqs=3)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_after_a_prefix_hit(
    checkpoint: Checkpoints, make_engine: Engines, family: str
) -> None:
    folder = checkpoint(family)
    engine, recorder = check_batch(folder, make_engine, (70,))
    longer = some_tokens(70, seed=70) + some_tokens(9)
    output = engine.generate(longer, greedy(6))[0]
    assert output.num_cached_tokens == 64
    assert min(recorder.rows[f"{output.request_id}-0"]) == 64
    assert_as_theirs(folder, longer + tokens_of(output)[0], recorder, f"{output.request_id}-0")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_after_preemption(
    checkpoint: Checkpoints, make_engine: Engines, family: str
) -> None:
    # With windows alone, and such short ones, admission leaves room enough for everybody.
    folder = checkpoint(family, **({"sliding_window": 40} if family == "mistral" else {}))
    options = small_pool(folder, 6, max_num_batched_tokens=40, max_num_seqs=6)
    engine = make_engine(folder, **options)
    recorder = Recorder(engine)
    prompts = [some_tokens(14, seed) for seed in range(6)]
    outputs = engine.generate(prompts, greedy(40))
    assert sum(output.stats["preemptions"] for output in outputs) > 0
    for prompt, output in zip(prompts, outputs, strict=True):
        tokens = tokens_of(output)[0]
        assert len(tokens) == 40
        assert_as_theirs(folder, prompt + tokens, recorder, f"{output.request_id}-0")


@pytest.mark.parametrize("kind", ROPES)
def test_every_rotary_type(checkpoint: Checkpoints, make_engine: Engines, kind: str) -> None:
    folder = checkpoint("llama", rope_parameters={"rope_type": kind, **ROPES[kind]})
    check_batch(folder, make_engine)
    check_batch(folder, make_engine, max_num_batched_tokens=9)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3_mixed"])
def test_half_precision_within_budget(
    checkpoint: Checkpoints, make_engine: Engines, family: str, dtype: str
) -> None:
    """At most twice the error that transformers itself makes in this precision."""
    folder, kind = checkpoint(family, dtype=dtype), getattr(torch, dtype)
    prompt = some_tokens(70)
    exact, rounded = theirs(folder, prompt), theirs(folder, prompt, kind)
    allowed = 2 * (rounded - exact).square().mean().sqrt()
    for budget in (512, 19):
        engine = make_engine(folder, max_num_batched_tokens=budget)
        recorder = Recorder(engine)
        output = engine.generate(prompt, greedy(1))[0]
        error = (recorder.matrix(f"{output.request_id}-0") - exact).square().mean().sqrt()
        assert error <= allowed


def test_reported_logprobs_are_those_of_transformers(
    checkpoint: Checkpoints, make_engine: Engines
) -> None:
    folder = checkpoint("qwen3")
    prompt = some_tokens(40)
    engine = make_engine(folder, max_num_batched_tokens=16)
    output = engine.generate(prompt, greedy(5, logprobs=3, prompt_logprobs=3))[0]
    answer = output.outputs[0]
    sequence = prompt + answer.token_ids
    expected = theirs(folder, sequence).log_softmax(-1)
    entries = [*(output.prompt_logprobs or ()), *(answer.logprobs or ())]
    assert len(entries) == len(sequence) and entries[0] is None
    for position, entry in enumerate(entries[1:], 1):
        assert entry is not None and sequence[position] in entry
        row = expected[position - 1]
        assert list(entry)[:3] == row.topk(3).indices.tolist()
        for token, found in entry.items():
            assert found.logprob == pytest.approx(float(row[token]), rel=1e-4, abs=1e-4)
            assert found.rank == 1 + int((row > row[token]).sum())
