"""The attention layer of MoSA: heads that choose their tokens, and dense heads beside them."""

from __future__ import annotations

import torch

from ...kernels.linear import linear, pack
from ...kernels.rope import apply_rope
from ..attention.base import Aux, LayerShape
from ..attention.experts import ExpertShape
from ..checkpoint.config_json import ModelConfig
from ..checkpoint.mosa_config import MosaConfig
from .attention import AttentionContext
from .experts import Experts
from .weights import Weights


def mosa_config(config: ModelConfig) -> MosaConfig:
    """The heads of the model; ValueError for one without heads that choose."""
    if not isinstance(config.variant, MosaConfig):
        raise ValueError("a MoSA layer needs the config's entry mosa")
    return config.variant


class MosaAttention:
    """The sum of two attention layers over the same input.

    A router scores every row for every choosing head; the method says which rows the head chooses
    by it. Queries, keys and values are computed of these alone; what the head attends to is
    multiplied by the row's score, and a row that it did not choose gets nothing from it.
    """

    def __init__(self, config: ModelConfig, layer: int, weights: Weights) -> None:
        mosa = mosa_config(config)
        name = f"model.layers.{layer}.self_attn."
        self.layer = layer
        self.shape = self.shape_of(config, layer)
        self.router = weights.projection(name + "mosa_heads.r.0")
        self.experts = Experts.of(
            weights.tensor(name + "mosa_heads.QKV.W"), weights.tensor(name + "mosa_heads.O.W")
        )
        self.thresholds: torch.Tensor | None = None
        if mosa.thresholds is not None:
            self.thresholds = torch.tensor(mosa.thresholds[layer])
        heads, dim, hidden = mosa.other_heads, mosa.head_dim, config.hidden_size
        self.qkv = self.out = None
        if heads:
            # Rows are head by head query, key, value: all queries first, then keys, then values.
            rows = weights.tensor(name + "other_heads.W_QKV.weight").view(heads, 3, dim, hidden)
            self.qkv = pack(rows.transpose(0, 1).reshape(-1, hidden))
            self.out = weights.projection(name + "other_heads.W_O")

    @staticmethod
    def shape_of(config: ModelConfig, layer: int) -> LayerShape:
        """The attention geometry of one layer."""
        mosa = mosa_config(config)
        experts = ExpertShape(
            mosa.mosa_heads, mosa.sparsity, mosa.include_first, mosa.thresholds is not None
        )
        return LayerShape(
            num_heads=mosa.other_heads,
            num_kv_heads=mosa.other_heads,
            head_dim=mosa.head_dim,
            v_head_dim=mosa.head_dim,
            scale=mosa.head_dim**-0.5,
            experts=experts,
        )

    @staticmethod
    def tensors(config: ModelConfig, layer: int) -> dict[str, tuple[int, ...]]:
        """Name -> shape, named as in the paper's code."""
        mosa, hidden = mosa_config(config), config.hidden_size
        experts, others, dim = mosa.mosa_heads, mosa.other_heads, mosa.head_dim
        shapes: dict[str, tuple[int, ...]] = {
            "mosa_heads.r.0.weight": (experts, hidden),
            "mosa_heads.QKV.W": (experts, hidden, 3 * dim),
            "mosa_heads.O.W": (experts, dim, hidden),
        }
        if others:
            shapes["other_heads.W_QKV.weight"] = (3 * dim * others, hidden)
            shapes["other_heads.W_O.weight"] = (hidden, dim * others)
        return shapes

    @staticmethod
    def spare_elements(config: ModelConfig) -> int:
        """None: every weight is kept once."""
        return 0

    @staticmethod
    def scratch_bytes(config: ModelConfig, dtype: torch.dtype, tokens: int, seqs: int) -> int:
        """Per row the fp32 sum of all heads; per row and choosing head, if it chose them all, its
        score and place, the row's hidden state, q, k, v and the output in fp32 and rounded.
        """
        mosa = mosa_config(config)
        pair = config.hidden_size + 8 * mosa.head_dim
        head = pair * dtype.itemsize + 2 * mosa.head_dim * 4 + 12 * 8
        return tokens * (config.hidden_size * 4 + mosa.mosa_heads * head)

    def __call__(self, x: torch.Tensor, step: AttentionContext) -> torch.Tensor:
        """x: [T, hidden], normed -> [T, hidden], to be added to the residual stream."""
        # In fp64, whose last bit, which a vector routine may round by the element's place, does not
        # survive the rounding to fp32.
        scores = linear(x, self.router, torch.float32).double().sigmoid().float()
        chosen = step.choose(self.layer, scores, self.thresholds)
        q, k, v = self.experts.project(x, chosen)
        apply_rope(q[:, None], k[:, None], step.cos[chosen.rows], step.sin[chosen.rows])
        y = step.attend_chosen(self.layer, chosen, q, k, v) * chosen.scores[:, None]
        total = self._others(x, step, Aux(rows={"router": scores}, chosen=chosen))
        self.experts.add_to(total, y.to(x.dtype), chosen)
        return total.to(x.dtype)

    def _others(self, x: torch.Tensor, step: AttentionContext, aux: Aux) -> torch.Tensor:
        """float32 [T, hidden]: the dense heads."""
        heads, dim = self.shape.num_heads, self.shape.head_dim
        if self.qkv is None or self.out is None:
            none = x.new_empty((x.shape[0], 0, dim))
            step.attend(self.layer, none, none, none, aux)
            return torch.zeros(x.shape)
        qkv = linear(x, self.qkv).view(x.shape[0], 3 * heads, dim)
        q, k, v = torch.split(qkv, heads, dim=1)
        apply_rope(q, k, step.cos, step.sin)
        out = step.attend(self.layer, q, k, v, aux)
        return linear(out.flatten(1), self.out, torch.float32)
