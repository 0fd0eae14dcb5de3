"""The attention layer with an indexer that scores blocks of keys."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ...kernels.linear import linear
from ...kernels.rope import apply_rope
from ..attention.base import Aux, IndexShape, LayerShape
from ..branches import Turns
from ..checkpoint.config_json import ModelConfig
from ..checkpoint.qsa_config import QsaConfig
from .attention import Attention, AttentionContext
from .norm import Norm
from .weights import Weights


def qsa_config(config: ModelConfig) -> QsaConfig:
    """The sizes of the model's indexers; ValueError for a model without any."""
    if not isinstance(config.variant, QsaConfig):
        raise ValueError("an attention layer with an indexer of blocks needs the config's sizes")
    return config.variant


@dataclass(frozen=True)
class BlockKeys:
    """The Compressor of an indexer: the mean of a block's index keys, rounded, normed, and turned
    to the block's first position. The mean is summed token by token in fp32.
    """

    norm: Norm

    def __call__(
        self, k: torch.Tensor, v: torch.Tensor, first: torch.Tensor, turns: Turns | None
    ) -> torch.Tensor:
        """[n, 1, d] of index keys k [n, length, 1, d]; first: int64 [n]. There are no values v."""
        if turns is None:
            raise ValueError("qsa: index keys of blocks are turned to their positions: no angles")
        total = k[:, 0].float()
        for token in range(1, k.shape[1]):
            total = total + k[:, token].float()
        keys = self.norm.each_head((total / k.shape[1]).to(k.dtype))
        apply_rope(keys, keys[:, :0], *turns.cos_sin(first))
        return keys


class QsaAttention(Attention):
    """Grouped-query attention whose method gets the normed and turned index queries, the index keys
    as they are projected, and what makes a block's key of them.
    """

    def __init__(self, config: ModelConfig, layer: int, weights: Weights) -> None:
        super().__init__(config, layer, weights)
        name = f"model.layers.{layer}.self_attn.indexer."
        qsa = qsa_config(config)
        self.index_heads, self.index_dim = qsa.index_heads, qsa.index_dim
        self.index_qk = weights.projection(name + "index_qk_proj")
        self.index_q_norm, index_k_norm = (
            Norm(
                weights.tensor(name + f"{part}_layernorm.weight"),
                config.rms_norm_eps,
                config.features.norm_offset,
            )
            for part in ("q", "k")
        )
        self.aux = replace(self.aux, compress=BlockKeys(index_k_norm))

    @staticmethod
    def shape_of(config: ModelConfig, layer: int) -> LayerShape:
        """The attention geometry of one layer."""
        qsa = qsa_config(config)
        index = IndexShape(qsa.index_heads, qsa.index_dim, pooled=True)
        return replace(Attention.shape_of(config, layer), index=index)

    @staticmethod
    def tensors(config: ModelConfig, layer: int) -> dict[str, tuple[int, ...]]:
        """Name -> shape, as the Hugging Face classes name them."""
        qsa = qsa_config(config)
        rows = (qsa.index_heads + 1) * qsa.index_dim
        return Attention.tensors(config, layer) | {
            "indexer.index_qk_proj.weight": (rows, config.hidden_size),
            "indexer.q_layernorm.weight": (qsa.index_dim,),
            "indexer.k_layernorm.weight": (qsa.index_dim,),
        }

    @staticmethod
    def scratch_bytes(config: ModelConfig, dtype: torch.dtype, tokens: int, seqs: int) -> int:
        """Index queries and keys as projected and as normed, blocks at work, and lists of blocks,
        once as they are chosen and once for every KV head.
        """
        qsa = qsa_config(config)
        row = 2 * (qsa.index_heads + 1) * qsa.index_dim * dtype.itemsize
        blocks = 4 * qsa.index_dim * torch.float32.itemsize
        lists = 4 * (qsa.listed + 1) * (1 + config.num_kv_heads)
        own = Attention.scratch_bytes(config, dtype, tokens, seqs)
        return own + tokens * (row + blocks + lists)

    def aux_of(self, x: torch.Tensor, step: AttentionContext) -> Aux:
        """Index queries [T, Hi, d] and the one index key [T, 1, d] of every row."""
        rows = linear(x, self.index_qk).view(x.shape[0], self.index_heads + 1, self.index_dim)
        q = self.index_q_norm.each_head(rows[:, : self.index_heads])
        apply_rope(q, q[:, :0], step.cos, step.sin)
        return replace(self.aux, rows={"index_q": q, "index_k": rows[:, self.index_heads :]})
