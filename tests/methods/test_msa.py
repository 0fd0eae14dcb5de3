"""MiniMax's block-sparse attention: limits, causality, refusals.

tests/engine/test_engine_families.py compares it with transformers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from saccade import Engine
from saccade.engine.errors import CheckpointError
from saccade.kernels import native

from ..engine.conftest import Checkpoints
from ..engine.engine_probe import Recorder, bitwise, greedy, some_tokens
from ..engine.test_config_json import ABSENT, read
from ..engine.test_engine_families import theirs

pytestmark = pytest.mark.usefixtures("one_thread")
compiled = pytest.mark.skipif(
    native.chosen_isa() is None, reason="the references promise tokens, not bits"
)
PROMPT = some_tokens(120)
SPEC = "0:dense; *:msa(16, {topk}, {local})"


def logits(folder: Path, prompt: list[int], **options: Any) -> torch.Tensor:
    """Logits of all rows of the prompt and of five generated tokens."""
    with Engine(folder, kv_cache_memory=1 << 20, **{"page_size": 16, **options}) as engine:
        recorder = Recorder(engine)
        output = engine.generate(prompt, greedy(6))[0]
        assert output.stats["attention"]["prefill"]["dense_fallbacks"] == 0
        return recorder.matrix(f"{output.request_id}-0")


@compiled
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_as_many_blocks_as_there_are_is_dense(checkpoint: Checkpoints, dtype: str) -> None:
    folder = checkpoint("minimax_m3")
    dense = logits(folder, PROMPT, attention="dense", dtype=dtype)
    for topk, local in ((8, 1), (20, 3), (8, 8)):
        spec = SPEC.format(topk=topk, local=local)
        assert bitwise(logits(folder, PROMPT, attention=spec, dtype=dtype), dense)
    assert not bitwise(logits(folder, PROMPT, dtype=dtype), dense)


@compiled
def test_the_checkpoint_says_how_it_attends(checkpoint: Checkpoints) -> None:
    folder = checkpoint("minimax_m3")
    own = logits(folder, PROMPT)
    assert bitwise(own, logits(folder, PROMPT, attention=SPEC.format(topk=3, local=1)))
    with Engine(folder, kv_cache_memory=1 << 20) as engine:
        assert engine.policy.text == "0: dense; 1-2: msa(block=16, topk=3)"


@compiled
def test_lists_of_fewer_index_heads_serve_more_kv_heads(checkpoint: Checkpoints) -> None:
    """One index head, two KV heads; transformers is the judge of the lists."""
    folder = checkpoint("minimax_m3", index_n_heads=1)
    found, truth = logits(folder, PROMPT)[: len(PROMPT)], theirs(folder, PROMPT)
    assert float((found - truth).abs().max() / truth.abs().max()) < 1e-4


@compiled
@pytest.mark.parametrize("at", [1, 31, 63, 119])
def test_what_comes_later_changes_nothing_before(checkpoint: Checkpoints, at: int) -> None:
    folder = checkpoint("minimax_m3")
    edited = [*PROMPT[:at], 3 + PROMPT[at] % 100, *PROMPT[at + 1 :]]
    found = [logits(folder, prompt) for prompt in (PROMPT, edited)]
    assert bitwise(found[0][:at], found[1][:at]) and not torch.equal(found[0][at], found[1][at])


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("0:dense; *:msa(block=24)", "power of two in 16 .. 512, got 24"),
        ("0:dense; *:msa(local=0)", "local must be at least 1"),
        ("0:dense; *:msa(topk=2, local=3)", "topk at least local"),
        ("0:dense; *:msa(topk=300)", "at most 256"),
        ("msa(16)", "has no indexer of tokens; use dense there"),
    ],
)
def test_unusable_settings_are_refused(checkpoint: Checkpoints, spec: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Engine(checkpoint("minimax_m3"), attention=spec)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layer_types": ABSENT}, "layer_types: expected a list of 3 entries"),
        ({"layer_types": ["sliding_attention"] * 3}, "layer_types: 'sliding_attention' is not"),
        ({"mlp_layer_types": ["moe"] * 3}, "mlp_layer_types: 'moe' is not supported"),
        ({"index_n_heads": 3}, "index_n_heads: 3 does not divide"),
        ({"index_head_dim": 6}, "index_head_dim: .*no less than the 8 rotary ones"),
        ({"num_experts_per_tok": 7}, "num_experts_per_tok: .*6"),
        ({"swiglu_limit": 0}, "swiglu_limit: expected a finite and above 0"),
    ],
)
def test_errors_name_the_key(
    checkpoint: Checkpoints, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    base = json.loads((checkpoint("minimax_m3") / "config.json").read_text())
    with pytest.raises(CheckpointError, match=rf"config\.json.*{words}"):
        read(tmp_path, base, **changes)
