"""The gated feed-forward layer."""

from __future__ import annotations

from typing import Protocol

import torch

from ...kernels.activation import silu_mul, swiglu
from ...kernels.experts import gpu_scratch_bytes
from ...kernels.linear import linear
from ..checkpoint.config_json import ModelConfig
from .expert_mlp import ExpertsMLP, SoftmaxExpertsMLP
from .weights import Weights, linear_tensors


class FeedForward(Protocol):
    """A feed-forward layer, built of its weights."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [T, hidden], normed -> [T, hidden], to be added to the residual stream."""
        ...


class MLP:
    """down(silu(gate(x)) * up(x)), or the family's own activation; gate and up in one product."""

    def __init__(self, config: ModelConfig, layer: int, weights: Weights) -> None:
        name, bias = f"model.layers.{layer}.mlp.", config.mlp_bias
        self.swiglu = config.features.swiglu
        parts = ("gate_proj", "up_proj") if self.swiglu is None else ("gate_up_proj",)
        self.gate_up = weights.projection(*(name + part for part in parts), bias=bias)
        self.down = weights.projection(name + "down_proj", bias=bias)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [T, hidden], normed -> [T, hidden], to be added to the residual stream."""
        gate_up = linear(x, self.gate_up)
        if self.swiglu is None:
            return linear(silu_mul(gate_up), self.down)
        return linear(swiglu(gate_up, self.swiglu.alpha, self.swiglu.limit), self.down)


def feed_forward(config: ModelConfig, layer: int, weights: Weights) -> FeedForward:
    """The feed-forward layer that the config has at this place."""
    return _kind(config, layer)(config, layer, weights)


def _kind(config: ModelConfig, layer: int) -> type[MLP | ExpertsMLP | SoftmaxExpertsMLP]:
    experts = config.features.experts
    if experts is None or layer not in experts.layers:
        return MLP
    return ExpertsMLP if experts.router == "sigmoid" else SoftmaxExpertsMLP


def mlp_tensors(config: ModelConfig, layer: int) -> dict[str, tuple[int, ...]]:
    """Name -> shape, without the prefix `model.layers.<layer>.mlp.`"""
    kind, hidden = _kind(config, layer), config.hidden_size
    if issubclass(kind, ExpertsMLP | SoftmaxExpertsMLP):
        return kind.tensors(config)
    inner = config.features.dense_inner or config.intermediate_size
    widths = {"gate_proj": inner, "up_proj": inner}
    if config.features.swiglu is not None:
        widths = {"gate_up_proj": 2 * inner}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, rows in widths.items():
        shapes |= linear_tensors(name, rows, hidden, config.mlp_bias)
    return shapes | linear_tensors("down_proj", hidden, inner, config.mlp_bias)


def mlp_scratch_bytes(config: ModelConfig, dtype: torch.dtype, tokens: int) -> int:
    """Gate, up and their product; with experts also rows and results of one, and fp32 sums."""
    experts, hidden = config.features.experts, config.hidden_size
    dense = 3 * (config.features.dense_inner or config.intermediate_size) * dtype.itemsize
    if experts is None:
        return tokens * dense
    inner = 3 * max(experts.inner, experts.shared_inner) * dtype.itemsize
    routing = (experts.count * 24) + hidden * (dtype.itemsize + 5 * 4)
    return tokens * max(dense, inner + routing)


def expert_scratch_bytes(config: ModelConfig, dtype: torch.dtype, tokens: int) -> int:
    """What the products of a layer of experts take on a GPU."""
    experts = config.features.experts
    if experts is None:
        return 0
    sizes = (config.hidden_size, experts.inner, dtype.itemsize)
    return gpu_scratch_bytes(tokens, experts.per_token, *sizes)
