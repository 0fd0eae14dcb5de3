"""The attention layer: projections, query-key norm, rotary embedding; its method does the rest."""

from __future__ import annotations

from typing import Protocol

import torch

from ...kernels.linear import linear
from ...kernels.norm import rms_norm
from ...kernels.rope import apply_rope
from ..attention.base import Aux, LayerShape
from ..checkpoint.config_json import ModelConfig
from .weights import Weights, linear_tensors


class AttentionContext(Protocol):
    """What the step gives to its attention layers."""

    @property
    def cos(self) -> torch.Tensor:
        """float32 [T, head_dim / 2], of each row's position."""
        ...

    @property
    def sin(self) -> torch.Tensor:
        """float32 [T, head_dim / 2], of each row's position."""
        ...

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, aux: Aux
    ) -> torch.Tensor:
        """Stores k and v [T, Hkv, d] and returns the attention output [T, H, d] for q [T, H, d].

        aux: whatever else the layer computed for its method, of the same T rows.
        """
        ...


class Attention:
    """Grouped-query attention of one layer, by the method that the step's context has for it."""

    def __init__(self, config: ModelConfig, layer: int, weights: Weights) -> None:
        name = f"model.layers.{layer}.self_attn."
        self.layer = layer
        self.shape = self.shape_of(config, layer)
        self.eps = config.rms_norm_eps
        self.qkv = weights.projection(
            name + "q_proj", name + "k_proj", name + "v_proj", bias=config.qkv_bias
        )
        self.q_norm = weights.tensor(name + "q_norm.weight") if config.qk_norm else None
        self.k_norm = weights.tensor(name + "k_norm.weight") if config.qk_norm else None
        self.out = weights.projection(name + "o_proj", bias=config.output_bias)

    @staticmethod
    def shape_of(config: ModelConfig, layer: int) -> LayerShape:
        """The attention geometry of one layer."""
        return LayerShape(
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            v_head_dim=config.head_dim,
            scale=config.head_dim**-0.5,
            window=config.windows[layer],
        )

    @staticmethod
    def tensors(config: ModelConfig, layer: int) -> dict[str, tuple[int, ...]]:
        """Name -> shape, as the Hugging Face classes name them."""
        hidden, dim = config.hidden_size, config.head_dim
        queries, keys = config.num_heads * dim, config.num_kv_heads * dim
        shapes: dict[str, tuple[int, ...]] = {}
        for name, rows in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
            shapes |= linear_tensors(name, rows, hidden, config.qkv_bias)
        shapes |= linear_tensors("o_proj", hidden, queries, config.output_bias)
        if config.qk_norm:
            shapes |= {"q_norm.weight": (dim,), "k_norm.weight": (dim,)}
        return shapes

    @staticmethod
    def spare_elements(config: ModelConfig) -> int:
        """None: every weight is kept once."""
        return 0

    @staticmethod
    def scratch_bytes(config: ModelConfig, dtype: torch.dtype, tokens: int, seqs: int) -> int:
        """None beyond what every layer takes."""
        return 0

    def __call__(self, x: torch.Tensor, step: AttentionContext) -> torch.Tensor:
        """x: [T, hidden], normed -> [T, hidden], to be added to the residual stream."""
        heads, kv_heads, dim = self.shape.num_heads, self.shape.num_kv_heads, self.shape.head_dim
        qkv = linear(x, self.qkv).view(x.shape[0], heads + 2 * kv_heads, dim)
        q, k, v = torch.split(qkv, [heads, kv_heads, kv_heads], dim=1)  # views, turned in place
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self._norm_heads(q, self.q_norm), self._norm_heads(k, self.k_norm)
        apply_rope(q, k, step.cos, step.sin)
        return linear(step.attend(self.layer, q, k, v, Aux()).flatten(1), self.out)

    def _norm_heads(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return rms_norm(x.reshape(-1, x.shape[-1]), weight, self.eps).view(x.shape)
