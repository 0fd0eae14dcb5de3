"""The torch references alone serve the whole engine too: same tokens, however the work is cut."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .conftest import Checkpoints, Engines
from .engine_probe import greedy, small_pool, some_tokens, tokens_of

pytestmark = pytest.mark.usefixtures("one_thread")
POISON = 99
PROMPTS = [
    [token for token in some_tokens(length, seed=length) if token != POISON]
    for length in (20, 37, 50, 51)
]
BAD = [*PROMPTS[2][:-3], POISON, *PROMPTS[2][-3:]]
POLICIES = {
    "dense": ("llama", {}),
    "phases": ("llama", {"prefill_attention": "window(9, 2)", "decode_attention": "chunked(5, 7)"}),
    "sliding": ("mistral", {}),
    "convolved_keys": ("moba_kconv", {}),
    "gates": ("qwen3_next", {"attention": "moba(16, 2)"}),
    "sliding_in_part": ("qwen3_mixed", {"attention": "chunked(16, 24)"}),
}


def answers(folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    script = Path(__file__).with_name("reference_run.py")
    environment = {**os.environ, "SACCADE_ISA": "reference", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(folder), json.dumps(job)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("case", POLICIES)
def test_the_references_give_the_same_tokens(
    checkpoint: Checkpoints, make_engine: Engines, case: str
) -> None:
    """In one shot, and in chunks beside a request of NaN, with few pages and prefix hits."""
    family, policy = POLICIES[case]
    folder = checkpoint(family)
    cut = {**small_pool(folder, 7, **policy), "max_num_batched_tokens": 24}
    prompts = [BAD, *PROMPTS]  # the NaN lies in page 0: what evicted pages are taken for, if at all
    job = {"policy": policy, "cut": cut, "prompts": prompts, "max_tokens": 8, "poison": POISON}
    found = answers(folder, job)
    assert found["isa"] is None
    assert [tokens is None for tokens in found["alone"]] == [True] + [False] * 4
    assert found["together"] == found["alone"] * 2
    engine = make_engine(folder, **policy)
    outputs = engine.generate(PROMPTS, greedy(8, logit_bias={POISON: -100.0}))
    assert [tokens_of(output)[0] for output in outputs] == found["alone"][1:]
