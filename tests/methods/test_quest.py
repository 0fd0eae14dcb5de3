"""Quest through the whole engine: limits, an independent oracle, dense prompts, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from saccade import Engine
from saccade.kernels import native

from ..engine.conftest import Checkpoints
from ..engine.engine_probe import Recorder, bitwise, greedy, some_tokens
from .decode_oracle import decode_logits

pytestmark = pytest.mark.usefixtures("one_thread")
compiled = pytest.mark.skipif(
    native.chosen_isa() is None, reason="the references promise tokens, not bits"
)
PROMPT = some_tokens(100)


def logits(folder: Path, prompt: list[int], spec: str, **options: str) -> torch.Tensor:
    """Logits of all rows of the prompt and of nine generated tokens."""
    with Engine(folder, page_size=16, decode_attention=spec, **options) as engine:
        recorder = Recorder(engine)
        output = engine.generate(prompt, greedy(10))[0]
        return recorder.matrix(f"{output.request_id}-0")


@compiled
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("spec", ["quest(112, 16)", "quest(256, 64)"])
def test_a_budget_of_the_whole_context_is_dense(
    checkpoint: Checkpoints, spec: str, dtype: str
) -> None:
    folder = checkpoint("llama")
    found = logits(folder, PROMPT, spec, dtype=dtype)
    assert bitwise(found, logits(folder, PROMPT, "dense", dtype=dtype))


def test_prompts_are_dense(checkpoint: Checkpoints) -> None:
    folder = checkpoint("llama")
    sparse, dense = (logits(folder, PROMPT, spec) for spec in ("quest(48, 16)", "dense"))
    assert bitwise(sparse[:100], dense[:100]) and not bitwise(sparse[101:], dense[101:])


def quest_mask(q: torch.Tensor, k: torch.Tensor, reduction: str) -> torch.Tensor:
    """bool [H, L] of one row q [H, d] over K [L, H, d]: blocks of 16, three of them."""
    heads, length = q.shape[0], k.shape[0]
    own, mask = (length - 1) // 16, torch.zeros((heads, length), dtype=torch.bool)
    for kv in range(2):
        group = range(kv * heads // 2, (kv + 1) * heads // 2)
        bounds = []
        for block in range(own):
            keys = k[block * 16 : block * 16 + 16]
            each = [
                float(torch.maximum(q[h] * keys[:, h].amin(0), q[h] * keys[:, h].amax(0)).sum())
                for h in group
            ]
            bounds.append(max(each) if reduction == "max" else sum(each))
        best = sorted(range(own), key=lambda j: (-bounds[j], -j))[:2]
        for block in [*best, own]:
            mask[list(group), block * 16 : block * 16 + 16] = True
    return mask


@pytest.mark.parametrize("reduction", ["max", "sum"])
def test_against_an_independent_model(checkpoint: Checkpoints, reduction: str) -> None:
    folder = checkpoint("llama")
    with Engine(folder, page_size=16, decode_attention=f"quest(48, 16, {reduction})") as engine:
        recorder = Recorder(engine)
        output = engine.generate(PROMPT, greedy(10))[0]
        found = recorder.matrix(f"{output.request_id}-0")
    tokens = [*PROMPT, *output.outputs[0].token_ids[:-1]]
    truth = decode_logits(
        folder, tokens, len(PROMPT), lambda layer, q, k: quest_mask(q, k, reduction)
    )
    assert float((found - truth).abs().max() / truth.abs().max()) < 1e-4


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("quest(2048, 8)", "power of two of at least 16"),
        ("quest(32, 16)", "3 .. 256 whole blocks of 16 tokens, got 32"),
        ("quest(100, 16)", "whole blocks of 16 tokens, got 100"),
        ("quest(65536, 64)", "3 .. 256 whole blocks"),
        ("quest(reduction=mean)", "one of max, sum, not 'mean'"),
    ],
)
def test_unusable_settings_are_refused(checkpoint: Checkpoints, spec: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Engine(checkpoint("llama"), decode_attention=spec)


def test_prompts_and_windowed_layers_are_refused(checkpoint: Checkpoints) -> None:
    with pytest.raises(ValueError, match="quest does not serve this phase"):
        Engine(checkpoint("llama"), prefill_attention="quest")
    with pytest.raises(ValueError, match="sliding window of its own"):
        Engine(checkpoint("mistral"), decode_attention="quest")
