"""The attention layer with an indexer beside its projections, which chooses what it reads."""

from __future__ import annotations

from dataclasses import replace

import torch

from ...kernels.linear import linear
from ...kernels.rope import apply_rope
from ..attention.base import Aux, IndexShape, LayerShape
from ..checkpoint.config_json import ModelConfig
from ..checkpoint.index_config import IndexConfig
from .attention import Attention, AttentionContext
from .norm import Norm
from .weights import Weights


def index_config(config: ModelConfig) -> IndexConfig:
    """The sizes of the model's indexers; ValueError for a model without any."""
    if not isinstance(config.variant, IndexConfig):
        raise ValueError("an attention layer with an indexer needs the config's index sizes")
    return config.variant


class IndexedAttention(Attention):
    """Grouped-query attention; where a layer has an indexer, its method gets the normed and turned
    index queries and keys.
    """

    def __init__(self, config: ModelConfig, layer: int, weights: Weights) -> None:
        super().__init__(config, layer, weights)
        self.index = self.shape.index
        if self.index is None:
            return
        name = f"model.layers.{layer}.self_attn.indexer."
        self.index_qk = weights.projection(name + "q_proj", name + "k_proj")
        self.index_q_norm, self.index_k_norm = (
            Norm(
                weights.tensor(name + f"{part}_norm.weight"),
                config.rms_norm_eps,
                config.features.norm_offset,
            )
            for part in ("q", "k")
        )

    @staticmethod
    def shape_of(config: ModelConfig, layer: int) -> LayerShape:
        """The attention geometry of one layer."""
        index = index_config(config)
        own = IndexShape(index.index_heads, index.index_dim) if layer in index.layers else None
        return replace(Attention.shape_of(config, layer), index=own)

    @staticmethod
    def tensors(config: ModelConfig, layer: int) -> dict[str, tuple[int, ...]]:
        """Name -> shape, as the Hugging Face classes name them."""
        index, shapes = index_config(config), Attention.tensors(config, layer)
        if layer in index.layers:
            shapes |= {
                "indexer.q_proj.weight": (index.index_heads * index.index_dim, config.hidden_size),
                "indexer.k_proj.weight": (index.index_dim, config.hidden_size),
                "indexer.q_norm.weight": (index.index_dim,),
                "indexer.k_norm.weight": (index.index_dim,),
            }
        return shapes

    @staticmethod
    def scratch_bytes(config: ModelConfig, dtype: torch.dtype, tokens: int, seqs: int) -> int:
        """Index queries and keys as projected and as normed, and a list of blocks per head."""
        index = index_config(config)
        row = 2 * (index.index_heads + 1) * index.index_dim * dtype.itemsize
        lists = 4 * 256 * (index.index_heads + config.num_heads)
        own = Attention.scratch_bytes(config, dtype, tokens, seqs)
        return own + tokens * (row + lists)

    def aux_of(self, x: torch.Tensor, step: AttentionContext) -> Aux:
        """Index queries [T, Hi, d] and the one index key [T, 1, d] of every row."""
        if self.index is None:
            return self.aux
        heads, dim = self.index.heads, self.index.dim
        rows = linear(x, self.index_qk).view(x.shape[0], heads + 1, dim)
        q = self.index_q_norm.each_head(rows[:, :heads])
        k = self.index_k_norm.each_head(rows[:, heads:])
        apply_rope(q, k, step.cos, step.sin)
        return replace(self.aux, rows={"index_q": q, "index_k": k})
