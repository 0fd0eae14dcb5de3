"""Beside weights and pages, a prompt of 131,072 tokens takes no more memory than was declared."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from saccade.benchmarks.scratch import CLEAR, MAPPED
from saccade.kernels import native

from .conftest import Checkpoints

TOKENS = 1 << 17
# Prints how far the process grew while it read the prompt and decoded, and the declared arena.
SCRIPT = """
import sys
from saccade import Engine, SamplingParams
from saccade.benchmarks.scratch import CLEAR, resident

folder, prefill, decode, tokens = *sys.argv[1:4], int(sys.argv[4])
policy = {"prefill_attention": prefill, "decode_attention": decode}
engine = Engine(folder, max_num_seqs=1, max_model_len=tokens + 8, **policy)
prompt = [3 + 7919 * i % 89 for i in range(tokens)]
for layer in engine._runner._cache.layers:  # pages are memory from their first use on
    for each in (layer.k, layer.v, *layer.fields.values()):
        each.fill_(0)
params = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True)
engine.generate(prompt[:200], params)
CLEAR.write_text("5")
before = resident("VmRSS")
output = engine.generate(prompt, params)[0]
assert len(output.outputs[0].token_ids) == 4
print(resident("VmHWM") - before, engine.memory.request.scratch_bytes)
"""
# Python's own: digests and page tables of 2048 pages, token ids of a text.
BOOKS = 8 << 20
POLICIES = [
    ("streaming", "lessismore"),
    ("moba(block=128, topk=8)", "moba(block=128, topk=8)"),
    ("delta", "quest"),
    ("nsa(branches=selected, phi=mean, kv=shared)", "nsa(branches=selected, phi=mean, kv=shared)"),
    ("infllm", "infllm"),
    ("adaptive", "adaptive"),
]


@pytest.mark.slow
@pytest.mark.skipif(native.module() is None, reason="no compiled module")
@pytest.mark.skipif(not CLEAR.exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize(("prefill", "decode"), POLICIES)
def test_a_long_prompt_stays_within_the_arena(
    checkpoint: Checkpoints, prefill: str, decode: str
) -> None:
    folder = checkpoint(
        "llama",
        max_position_embeddings=2 * TOKENS,
        num_hidden_layers=1,
        hidden_size=64,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
    )
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), prefill, decode, str(TOKENS)],
        capture_output=True,
        text=True,
        env=os.environ | MAPPED,
        check=False,
    )
    if "clear_refs" in done.stderr:
        pytest.skip("the peak of this process's memory cannot be reset here")
    assert done.returncode == 0, done.stderr
    grown, arena = map(int, done.stdout.split())
    assert grown < arena + BOOKS, f"{grown >> 20} MiB, declared were {arena >> 20}"
