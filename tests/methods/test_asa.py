"""ASA through the whole engine: an independent model, both forms, limits, memory, its config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from saccade import Engine
from saccade.kernels import native

from ..engine.conftest import Checkpoints
from ..engine.engine_probe import Recorder, greedy, some_tokens
from .asa_oracle import oracle_logits

pytestmark = pytest.mark.usefixtures("one_thread")
compiled = pytest.mark.skipif(
    native.chosen_isa() is None, reason="the references promise tokens, not bits"
)
PROMPT = some_tokens(120)
FORMS = ("expanded", "absorbed")


def logits(folder: Path, prompt: list[int], **options: Any) -> torch.Tensor:
    """Logits of all rows of the prompt and of generated tokens."""
    with Engine(folder, kv_cache_memory=1 << 20, **{"page_size": 16, **options}) as engine:
        recorder = Recorder(engine)
        output = engine.generate(prompt, greedy(6))[0]
        return recorder.matrix(f"{output.request_id}-0")


@pytest.mark.parametrize("family", ["asa", "asa_wide"])
@pytest.mark.parametrize("budget", [512, 7])
def test_against_an_independent_model(checkpoint: Checkpoints, family: str, budget: int) -> None:
    """Prefill, chunks and decode; the local layers expand prompts and absorb in decode."""
    folder = checkpoint(family)
    with Engine(folder, page_size=16, max_num_batched_tokens=budget) as engine:
        recorder = Recorder(engine)
        output = engine.generate(PROMPT, greedy(24))[0]
        found = recorder.matrix(f"{output.request_id}-0")
    tokens = [*PROMPT, *output.outputs[0].token_ids]
    truth = oracle_logits(folder, tokens[:-1])
    assert float((found - truth).abs().max() / truth.abs().max()) < 1e-4
    assert tokens[len(PROMPT) :] == truth[len(PROMPT) - 1 :].argmax(-1).tolist()
