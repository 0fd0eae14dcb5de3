"""The gated feed-forward layer."""

from __future__ import annotations

import torch

from ...kernels.activation import silu_mul
from ...kernels.linear import linear
from ..checkpoint.config_json import ModelConfig
from .weights import Weights


class MLP:
    """down(silu(gate(x)) * up(x)), with gate and up in one product."""

    def __init__(self, config: ModelConfig, layer: int, weights: Weights) -> None:
        name, bias = f"model.layers.{layer}.mlp.", config.mlp_bias
        self.gate_up = weights.projection(name + "gate_proj", name + "up_proj", bias=bias)
        self.down = weights.projection(name + "down_proj", bias=bias)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [T, hidden], normed -> [T, hidden], to be added to the residual stream."""
        return linear(silu_mul(linear(x, self.gate_up)), self.down)
