"""The declared arena follows the context and the threads where a method's kernels do."""

from __future__ import annotations

import pytest
import torch

from saccade.engine import scratch
from saccade.engine.attention.policy import parse_policy
from saccade.engine.checkpoint.config_json import read_config
from saccade.engine.config import EngineConfig
from saccade.engine.devices import Place
from saccade.engine.layers.mlp import expert_scratch_bytes
from saccade.engine.models import layer_shapes
from saccade.engine.scratch import scratch_bytes

from .conftest import Checkpoints

MILLION = 1 << 20
SELECTED = "nsa(branches=selected, phi=mean, kv=shared)"


def declared(
    checkpoint: Checkpoints,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    spec: str,
    length: int,
    threads: int = 64,
    gpu: bool = False,
) -> int:
    monkeypatch.setenv("SACCADE_NUM_THREADS", str(threads))
    folder = checkpoint(family)
    model = read_config(folder)
    shapes = list(layer_shapes(model))
    policy = parse_policy(spec, None, None, len(shapes))
    where = Place(torch.device("cpu"), gpu=gpu)
    return scratch_bytes(EngineConfig(folder), model, torch.bfloat16, shapes, policy, length, where)


@pytest.mark.parametrize(
    ("family", "spec", "per_token"),
    [
        # At least: 64 rows of 64 threads, and a weight of 4 bytes for one token in 16 (in 32).
        ("llama", SELECTED, 64 * 64 * 4 / 16),
        ("asa", "asa(32, 3, 1, 1)", 64 * 64 * 4 / 32),
        # 32 rows with scores of every head for one block in 16 tokens.
        ("llama", "lessismore", 32 * 4 / 16),
        ("llama", "tidal", 32 * 4 / 16),
        # Scores, positions and order of a list, of each thread.
        ("mosa", "mosa(mode=stream)", 64 * 3 * 4 / 4),
    ],
)
def test_a_million_tokens(
    checkpoint: Checkpoints,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    spec: str,
    per_token: float,
) -> None:
    short, long = (
        declared(checkpoint, monkeypatch, family, spec, length=length)
        for length in (1 << 12, MILLION)
    )
    assert long - short > 0.99 * per_token * (MILLION - (1 << 12))
    if "lessismore" not in spec and "tidal" not in spec:
        few = declared(checkpoint, monkeypatch, family, spec, length=MILLION, threads=2)
        assert few < short + (long - short) / 16


@pytest.mark.parametrize("spec", ["dense", "moba", "quest", "infllm", "streaming"])
def test_others_take_the_same_whatever_the_length(
    checkpoint: Checkpoints, monkeypatch: pytest.MonkeyPatch, spec: str
) -> None:
    """But for the page tables of steps."""
    monkeypatch.setattr(scratch, "buffer_bytes", lambda *sizes: 0)
    found = {
        declared(checkpoint, monkeypatch, "llama", spec, length=length)
        for length in (1 << 12, MILLION)
    }
    assert len(found) == 1


def test_a_gpu_takes_by_the_lists_of_heads_that_choose(
    checkpoint: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At least by which row each of their keys ends, where tokens are replaced: 4 bytes for one in
    four tokens of three heads. Lists that only grow take less.
    """
    lengths = (1 << 24, 1 << 26)
    short, long = (
        declared(checkpoint, monkeypatch, "mosa", "mosa(mode=stream)", length, gpu=True)
        for length in lengths
    )
    lists = 3 * EngineConfig("demo").max_num_seqs
    assert long - short >= lists * 4 / 4 * (lengths[1] - lengths[0])
    grown = declared(checkpoint, monkeypatch, "mosa", "mosa(tau=0.6)", lengths[1], gpu=True)
    assert grown < long


@pytest.mark.parametrize(("family", "spec"), [("asa", "asa(32, 3, 1, 1)"), ("llama", "dense")])
def test_a_gpu_holds_partial_sums_of_latents(
    checkpoint: Checkpoints, monkeypatch: pytest.MonkeyPatch, family: str, spec: str
) -> None:
    """Sums of latents are as wide as these, however narrow the values that come of them."""
    found: list[tuple[int, int, bool]] = []

    def counted(*sizes: int, latent: bool) -> int:
        found.append((*sizes[4:6], latent))
        return 0

    monkeypatch.setattr(scratch, "gpu_scratch_bytes", counted)
    declared(checkpoint, monkeypatch, family, spec, 4096, gpu=True)
    for each, shape in zip(found, layer_shapes(read_config(checkpoint(family))), strict=True):
        if shape.latent is None:
            assert each == (shape.head_dim, shape.v_head_dim, False)
        else:
            assert each == (shape.latent.rank + shape.latent.rope, shape.latent.rank, True)


def test_a_gpu_takes_for_the_products_of_experts(
    checkpoint: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all rows, two experts for each; beside attention they are of no matter where less."""
    model = read_config(checkpoint("minimax_m3"))
    assert expert_scratch_bytes(model, torch.bfloat16, 100) == 200 * (4 * 64 + 2 * 24 + 48)
    assert expert_scratch_bytes(read_config(checkpoint("llama")), torch.bfloat16, 100) == 0
    args = (checkpoint, monkeypatch, "minimax_m3", "dense", 1 << 12)
    usual = declared(*args, gpu=True)
    monkeypatch.setattr(scratch, "expert_scratch_bytes", lambda *_: 1 << 40)
    assert declared(*args, gpu=True) > (1 << 40) > usual
    assert declared(*args) < usual


def test_graphs_hold_page_tables(checkpoint: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the buffers of steps take is declared where tables are long."""
    short, long = (
        declared(checkpoint, monkeypatch, "llama", "window(size=16)", length)
        for length in (4096, MILLION)
    )
    assert long - short >= 2 * 64 * (MILLION - 4096) // 64 * 4
