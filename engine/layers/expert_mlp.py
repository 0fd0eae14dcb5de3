"""The feed-forward layer of experts: every row goes through a few of them, and a shared one."""

from __future__ import annotations

import torch

from ...kernels.activation import sigmoid_mul, silu_mul, swiglu
from ...kernels.experts import ExpertWeights, experts
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
    """Experts routed by sigmoid scores, and a shared one."""

    def __init__(self, config: ModelConfig, layer: int, weights: Weights) -> None:
        routed, name = experts_of(config), f"model.layers.{layer}.mlp."
        self.per_token, self.scale = routed.per_token, routed.scale
        self.swiglu = config.features.swiglu or SwiGLU()
        self.router = weights.projection(name + "gate")
        self.correction = weights.exact(name + "gate.e_score_correction_bias")
        self.experts = ExpertWeights(
            weights.stacked(name + "experts.gate_up_proj"),
            weights.stacked(name + "experts.down_proj"),
            (self.swiglu.alpha, self.swiglu.limit),
        )
        self.shared_gate_up = weights.projection(name + "shared_experts.gate_up_proj")
        self.shared_down = weights.projection(name + "shared_experts.down_proj")

    @staticmethod
    def tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
        """Name -> shape, without the prefix `model.layers.<layer>.mlp.`"""
        routed, hidden = experts_of(config), config.hidden_size
        count, inner, shared = routed.count, routed.inner, routed.shared_inner
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
        out = experts(x, *self._route(x), self.experts)
        both = linear(x, self.shared_gate_up)
        shared = swiglu(both, self.swiglu.alpha, self.swiglu.limit)
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


class SoftmaxExpertsMLP:
    """Experts routed by probabilities, and a shared one behind a gate, as Qwen's models have it."""

    def __init__(self, config: ModelConfig, layer: int, weights: Weights) -> None:
        routed, name = experts_of(config), f"model.layers.{layer}.mlp."
        self.per_token, self.normalised = routed.per_token, routed.normalised
        self.router = weights.projection(name + "gate")
        each = [f"{name}experts.{number}." for number in range(routed.count)]
        self.experts = ExpertWeights(
            weights.projections([(one + "gate_proj", one + "up_proj") for one in each]),
            weights.projections([(one + "down_proj",) for one in each]),
        )
        shared = name + "shared_expert."
        self.shared_gate_up = weights.projection(shared + "gate_proj", shared + "up_proj")
        self.shared_down = weights.projection(shared + "down_proj")
        self.shared_gate = weights.projection(name + "shared_expert_gate")

    @staticmethod
    def tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
        """Name -> shape, without the prefix `model.layers.<layer>.mlp.`"""
        routed, hidden = experts_of(config), config.hidden_size
        widths = {f"experts.{number}.": routed.inner for number in range(routed.count)}
        shapes: dict[str, tuple[int, ...]] = {
            "gate.weight": (routed.count, hidden),
            "shared_expert_gate.weight": (1, hidden),
        }
        for name, inner in {**widths, "shared_expert.": routed.shared_inner}.items():
            shapes[name + "gate_proj.weight"] = shapes[name + "up_proj.weight"] = (inner, hidden)
            shapes[name + "down_proj.weight"] = (hidden, inner)
        return shapes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [T, hidden], normed -> [T, hidden], to be added to the residual stream."""
        out = experts(x, *self._route(x), self.experts)
        shared = linear(silu_mul(linear(x, self.shared_gate_up)), self.shared_down, torch.float32)
        gate = linear(x, self.shared_gate, torch.float32)
        return (out + sigmoid_mul(shared, gate)).to(x.dtype)

    def _route(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The experts of every row, int64 [T, k], and their shares, float32 [T, k].

        Equal probabilities: the earlier expert. In fp64 as in `ExpertsMLP`.
        """
        scores = linear(x, self.router, torch.float32).double().softmax(-1)
        ranked = scores.float().sort(dim=-1, descending=True, stable=True)
        chosen = ranked.indices[:, : self.per_token]
        shares = scores.gather(1, chosen)
        if self.normalised:
            shares = shares / shares.sum(-1, keepdim=True)
        return chosen, shares.float()
