"""Queries and gates out of one product, however a checkpoint packs them in q_proj."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from saccade.engine.checkpoint.config_json import ModelConfig, read_config
from saccade.engine.checkpoint.features import Features, Gate
from saccade.engine.layers.attention import Attention
from saccade.engine.layers.head_rows import attention_tensors
from saccade.kernels.linear import PackedWeight, pack

from .conftest import Checkpoints

pytestmark = pytest.mark.usefixtures("one_thread")


class Given:
    """Weights by name, as `Weights` takes them from a checkpoint."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self.tensors = tensors

    def tensor(self, name: str) -> torch.Tensor:
        return self.tensors[name]

    def projection(
        self, *names: str, bias: bool = False, order: torch.Tensor | None = None
    ) -> PackedWeight:
        rows = torch.cat([self.tensors[f"{name}.weight"] for name in names])
        return pack(rows if order is None else rows[order])


class Step:
    """Angles of no turn, and attention that gives every head its query plus its value."""

    cos, sin = torch.ones(7, 8), torch.zeros(7, 8)

    def attend(self, layer: int, q: Any, k: Any, v: Any, aux: Any) -> torch.Tensor:
        group = q.shape[1] // k.shape[1]
        return q + 2 * k.repeat_interleave(group, 1) + 3 * v.repeat_interleave(group, 1)


@pytest.mark.parametrize("packing", ["head", "group"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_every_packing(checkpoint: Checkpoints, packing: str, per_channel: bool) -> None:
    """Also one gate per head behind its own query rows, which no family's config names yet."""
    config: ModelConfig = replace(
        read_config(checkpoint("llama")), features=Features(gate=Gate(per_channel, packing))
    )
    heads, kv_heads, dim = config.num_heads, config.num_kv_heads, config.head_dim
    assert (heads, kv_heads, dim) == (4, 2, 16)
    gates = dim if per_channel else 1
    shapes = attention_tensors(config, 0)
    assert shapes["q_proj.weight"] == (heads * (dim + gates), config.hidden_size)
    name = "model.layers.0.self_attn."
    weights = {name + each: torch.randn(shape) / 8 for each, shape in shapes.items()}
    x = torch.randn(7, config.hidden_size)
    found = Attention(config, 0, Given(weights))(x, Step())  # type: ignore[arg-type]

    rows = x.double() @ weights[name + "q_proj.weight"].double().T
    k, v = (
        (x.double() @ weights[f"{name}{part}_proj.weight"].double().T).view(7, kv_heads, dim)
        for part in "kv"
    )
    outs = []
    for head in range(heads):
        if packing == "head":  # [query, gate] of a head after that of another
            own = rows[:, head * (dim + gates) :]
            query, gate = own[:, :dim], own[:, dim : dim + gates]
        else:  # the queries of a KV head's group, then their gates
            group, place = heads // kv_heads, head % (heads // kv_heads)
            own = rows[:, head // group * group * (dim + gates) :]
            query = own[:, place * dim : (place + 1) * dim]
            gate = own[:, group * dim + place * gates :][:, :gates]
        out = query + 2 * k[:, head * kv_heads // heads] + 3 * v[:, head * kv_heads // heads]
        outs.append(out * torch.sigmoid(gate))
    expected = torch.cat(outs, 1) @ weights[name + "o_proj.weight"].double().T
    assert torch.allclose(found.double(), expected, atol=1e-4)
