"""The feed-forward layer of experts: every row goes through a few of them, and a shared one."""

from __future__ import annotations

import torch

from ...kernels.activation import swiglu
from ...kernels.linear import linear
from ..checkpoint.config_json import ModelConfig
from ..checkpoint.features import Experts, SwiGLU
from .weights import Weights


def experts_of(config: ModelConfig) -> Experts:
    """The experts of the model; ValueError for one without any."""
    if config.features.experts is None:
        raise ValueError("a layer of experts needs the config's experts")
    return config.features.experts


class ExpertsMLP:
    """The routed experts' outputs by their weights, and the shared expert's.

    An expert takes the rows that chose it as one batch. A row adds up its experts in ascending
    order, in fp32, so that its bits do not depend on the rows around it.
    """

    def __init__(self, config: ModelConfig, layer: int, weights: Weights) -> None:
        experts, name = experts_of(config), f"model.layers.{layer}.mlp."
        self.per_token, self.scale = experts.per_token, experts.scale
        self.swiglu = config.features.swiglu or SwiGLU()
        self.router = weights.projection(name + "gate")
        self.correction = weights.exact(name + "gate.e_score_correction_bias")
        self.gate_up = weights.stacked(name + "experts.gate_up_proj")
        self.down = weights.stacked(name + "experts.down_proj")
        self.shared_gate_up = weights.projection(name + "shared_experts.gate_up_proj")
        self.shared_down = weights.projection(name + "shared_experts.down_proj")

    @staticmethod
    def tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
        """Name -> shape, without the prefix `model.layers.<layer>.mlp.`"""
        experts, hidden = experts_of(config), config.hidden_size
        count, inner, shared = experts.count, experts.inner, experts.shared_inner
        return {
            "gate.weight": (count, hidden),
            "gate.e_score_correction_bias": (count,),
            "experts.gate_up_proj": (count, 2 * inner, hidden),
            "experts.down_proj": (count, hidden, inner),
            "shared_experts.gate_up_proj.weight": (2 * shared, hidden),
            "shared_experts.down_proj.weight": (hidden, shared),
        }

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [T, hidden], normed -> [T, hidden], to be added to the residual stream."""
        chosen, shares = self._route(x)
        out = torch.zeros(x.shape, dtype=torch.float32)
        for expert in sorted({*chosen.flatten().tolist()}):
            rows, place = torch.nonzero(chosen == expert, as_tuple=True)
            inner = self._activated(linear(x[rows], self.gate_up[expert]))
            found = linear(inner, self.down[expert], torch.float32)
            out.index_add_(0, rows, found * shares[rows, place, None])
        shared = self._activated(linear(x, self.shared_gate_up))
        return (out * self.scale + linear(shared, self.shared_down, torch.float32)).to(x.dtype)

    def _route(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The experts of every row, int64 [T, k], and their shares, float32 [T, k], of sum 1.

        Equal scores: the earlier expert. In fp64, whose last bit, which a vector routine may round
        by the element's place, does not survive the rounding to fp32.
        """
        scores = linear(x, self.router, torch.float32).double().sigmoid()
        ranked = (scores.float() + self.correction).sort(dim=-1, descending=True, stable=True)
        chosen = ranked.indices[:, : self.per_token]
        shares = scores.gather(1, chosen)
        return chosen, (shares / shares.sum(-1, keepdim=True)).float()

    def _activated(self, gate_up: torch.Tensor) -> torch.Tensor:
        return swiglu(gate_up, self.swiglu.alpha, self.swiglu.limit)
