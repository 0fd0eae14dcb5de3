"""The attention layer that keeps latents: MLA where it is local, grouped latents where global."""

from __future__ import annotations

import torch

from ...kernels.linear import linear
from ...kernels.norm import rms_norm
from ...kernels.rope import apply_rope
from ..attention.base import Aux, LatentShape, LayerShape
from ..checkpoint.config_json import ModelConfig
from ..checkpoint.latent_config import LatentConfig
from ..config import PAGE_SIZES
from .attention import AttentionContext
from .gates import sigmoid_gates
from .up_projection import UpProjection
from .weights import Weights


def latent_config(config: ModelConfig) -> LatentConfig:
    """The sizes of the model's latents; ValueError for a model that keeps K and V."""
    if not isinstance(config.variant, LatentConfig):
        raise ValueError("a latent attention layer needs the config's latent sizes")
    return config.variant


class LatentAttention:
    """Queries from the hidden state or a low rank, keys and values by way of normed latents, and
    gates where the layer has any; its method does the rest.
    """

    def __init__(self, config: ModelConfig, layer: int, weights: Weights) -> None:
        latent = latent_config(config)
        name = f"model.layers.{layer}.self_attn."
        self.layer = layer
        self.shape = self.shape_of(config, layer)
        self.eps = config.rms_norm_eps
        self.nope, self.rope, self.rank = latent.nope_dim, latent.rope_dim, latent.rank(layer)
        self.gates = latent.num_gates(layer)
        low = latent.q_rank is not None
        self.query = weights.projection(name + ("q_b_proj" if low else "q_proj"))
        self.query_down = weights.projection(name + "q_a_proj") if low else None
        self.query_norm = weights.tensor(name + "q_a_layernorm.weight") if low else None
        self.down = weights.projection(name + "kv_a_proj_with_mqa")
        norm = weights.tensor(name + "kv_a_layernorm.weight")
        self.norms = norm.chunk(self.shape.num_kv_heads)
        self.up = UpProjection.of(
            weights.tensor(name + "kv_b_proj.weight"),
            config.num_heads,
            self.shape.num_kv_heads,
            self.nope,
            expands=self.shape.window is not None,
        )
        self.gate = weights.projection(name + "g_proj") if self.gates else None
        self.out = weights.projection(name + "o_proj")

    @staticmethod
    def shape_of(config: ModelConfig, layer: int) -> LayerShape:
        """The attention geometry of one layer."""
        latent = latent_config(config)
        groups = latent.num_groups(layer)
        return LayerShape(
            num_heads=config.num_heads,
            num_kv_heads=groups,
            head_dim=config.head_dim,
            v_head_dim=latent.v_dim,
            scale=config.head_dim**-0.5,
            window=config.windows[layer],
            latent=LatentShape(groups, latent.rank(layer), latent.rope_dim),
        )

    @staticmethod
    def tensors(config: ModelConfig, layer: int) -> dict[str, tuple[int, ...]]:
        """Name -> shape, named as in DeepSeek's latent attention; g_proj has head-major rows."""
        latent, hidden, heads = latent_config(config), config.hidden_size, config.num_heads
        rank, groups, gates = latent.rank(layer), latent.num_groups(layer), latent.num_gates(layer)
        queries = heads * config.head_dim
        shapes: dict[str, tuple[int, ...]] = {
            "kv_a_proj_with_mqa.weight": (groups * rank + latent.rope_dim, hidden),
            "kv_a_layernorm.weight": (groups * rank,),
            "kv_b_proj.weight": (heads * (latent.nope_dim + latent.v_dim), rank),
            "o_proj.weight": (hidden, heads * latent.v_dim),
        }
        if latent.q_rank is None:
            shapes["q_proj.weight"] = (queries, hidden)
        else:
            shapes["q_a_proj.weight"] = (latent.q_rank, hidden)
            shapes["q_a_layernorm.weight"] = (latent.q_rank,)
            shapes["q_b_proj.weight"] = (queries, latent.q_rank)
        if gates:
            shapes["g_proj.weight"] = (heads * gates, hidden)
        return shapes

    @staticmethod
    def spare_elements(config: ModelConfig) -> int:
        """The up-projections of local layers, packed a second time to expand."""
        latent = latent_config(config)
        per_layer = config.num_heads * (latent.nope_dim + latent.v_dim) * latent.local_rank
        return sum(latent.local_layers) * per_layer

    @staticmethod
    def scratch_bytes(config: ModelConfig, dtype: torch.dtype, tokens: int, seqs: int) -> int:
        """Per row absorbed queries, two sums of latents and their gated sum in fp32; then the
        window of a local layer, expanded: the latents, the products, keys and values, their pages.
        """
        latent = latent_config(config)
        wide = max(latent.local_rank, latent.global_rank) + latent.rope_dim
        row = config.num_heads * wide * (3 * dtype.itemsize + 3 * 4)
        window = tokens + seqs * (latent.window + 2 * max(PAGE_SIZES))
        pair = config.head_dim + latent.v_dim
        expanded = (4 * config.num_heads * pair + wide) * dtype.itemsize
        return tokens * row + window * expanded

    def __call__(self, x: torch.Tensor, step: AttentionContext) -> torch.Tensor:
        """x: [T, hidden], normed -> [T, hidden], to be added to the residual stream."""
        q, kept = self._queries(x), self._latents(x)
        rotary = kept[:, :1, self.rank :]  # one key for all groups
        apply_rope(q[..., self.nope :], rotary, step.cos, step.sin)
        kept[:, 1:, self.rank :] = rotary
        gates = sigmoid_gates(x, self.gate, self.gates) if self.gate else None
        aux = Aux(rows={} if gates is None else {"gates": gates}, up=self.up)
        none = kept.new_empty((*kept.shape[:2], 0))
        out = step.attend(self.layer, q, kept, none, aux)
        if gates is not None and self.shape.window is not None:
            out = (out * gates).to(out.dtype)
        return linear(out.flatten(1), self.out)

    def _queries(self, x: torch.Tensor) -> torch.Tensor:
        """[T, H, nope + rope]"""
        if self.query_down is not None and self.query_norm is not None:
            x = rms_norm(linear(x, self.query_down), self.query_norm, self.eps)
        return linear(x, self.query).view(x.shape[0], self.shape.num_heads, -1)

    def _latents(self, x: torch.Tensor) -> torch.Tensor:
        """[T, G, rank + rope]: normed latents, and the rotary key, unturned, behind the first."""
        down = linear(x, self.down)
        kept = down.new_empty((x.shape[0], len(self.norms), self.rank + self.rope))
        for g, norm in enumerate(self.norms):
            kept[:, g, : self.rank] = rms_norm(
                down[:, g * self.rank : (g + 1) * self.rank], norm, self.eps
            )
        kept[:, 0, self.rank :] = down[:, -self.rope :]
        return kept
