"""The attention layer of native sparse attention: three gates per head, K and V of one or of three
branches, and learned entries where the checkpoint has them.
"""

from __future__ import annotations

import torch

from ...kernels.linear import linear
from ...kernels.rope import apply_rope
from ..attention.base import Aux, LayerShape
from ..branches import BranchShape
from ..checkpoint.config_json import ModelConfig
from ..checkpoint.nsa_config import NsaConfig
from .attention import AttentionContext
from .compressor import LearnedCompressor, compressor_tensors
from .gates import sigmoid_gates
from .weights import Weights, linear_tensors


def nsa_config(config: ModelConfig) -> NsaConfig:
    """The sizes of the model's branches; ValueError for a model without."""
    if not isinstance(config.variant, NsaConfig):
        raise ValueError("a layer of native sparse attention needs the config of its branches")
    return config.variant


class NsaAttention:
    """Projections, rotary embedding, gates, and entries; the method adds up the branches."""

    def __init__(self, config: ModelConfig, layer: int, weights: Weights) -> None:
        name = f"model.layers.{layer}.self_attn."
        self.layer = layer
        self.shape = self.shape_of(config, layer)
        parts = (name + "q_proj", name + "k_proj", name + "v_proj")
        self.qkv = weights.projection(*parts, bias=config.qkv_bias)
        self.gate = weights.projection(name + "g_proj")
        self.out = weights.projection(name + "o_proj", bias=config.output_bias)
        self.compress = None
        if self.shape.branches is not None and self.shape.branches.computes:
            self.compress = LearnedCompressor(
                nsa_config(config), config.num_kv_heads, name, weights
            )

    @staticmethod
    def shape_of(config: ModelConfig, layer: int) -> LayerShape:
        """The attention geometry of one layer."""
        nsa = nsa_config(config)
        return LayerShape(
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            v_head_dim=nsa.v_dim or config.head_dim,
            scale=config.head_dim**-0.5,
            window=config.windows[layer],
            branches=BranchShape(nsa.phi, nsa.phi_rope, nsa.kv),
        )

    @staticmethod
    def tensors(config: ModelConfig, layer: int) -> dict[str, tuple[int, ...]]:
        """Name -> shape. g_proj has head-major rows: compression, selection, window of a head."""
        nsa, hidden = nsa_config(config), config.hidden_size
        dim, heads, kv_heads = config.head_dim, config.num_heads, config.num_kv_heads
        v_dim = nsa.v_dim or dim
        shapes = linear_tensors("q_proj", heads * dim, hidden, config.qkv_bias)
        shapes |= linear_tensors("k_proj", nsa.sets * kv_heads * dim, hidden, config.qkv_bias)
        shapes |= linear_tensors("v_proj", nsa.sets * kv_heads * v_dim, hidden, config.qkv_bias)
        shapes |= linear_tensors("o_proj", hidden, heads * v_dim, config.output_bias)
        shapes["g_proj.weight"] = (3 * heads, hidden)
        return shapes | compressor_tensors(nsa, kv_heads, dim, v_dim)

    @staticmethod
    def spare_elements(config: ModelConfig) -> int:
        """None: every weight is kept once."""
        return 0

    @staticmethod
    def scratch_bytes(config: ModelConfig, dtype: torch.dtype, tokens: int, seqs: int) -> int:
        """Gates and two more branches per row; K and V of three; the windows that rows complete,
        gathered, with what their compression takes.
        """
        nsa, dim = nsa_config(config), config.head_dim
        pair, heads, kv_heads = dim + (nsa.v_dim or dim), config.num_heads, config.num_kv_heads
        row = 24 * heads + (2 * heads * pair + 2 * nsa.sets * kv_heads * pair) * dtype.itemsize
        if nsa.phi == "mean" and nsa.phi_rope == "post":
            return tokens * row
        stride = nsa.stride
        window = kv_heads * (3 * nsa.length * pair + 2 * nsa.phi_hidden + 2 * pair)
        return tokens * row + (tokens // stride + seqs) * window * 4

    def __call__(self, x: torch.Tensor, step: AttentionContext) -> torch.Tensor:
        """x: [T, hidden], normed -> [T, hidden], to be added to the residual stream."""
        shape, rows = self.shape, linear(x, self.qkv)
        widths = [
            shape.num_heads * shape.head_dim,
            shape.kept_heads * shape.head_dim,
            shape.kept_heads * shape.v_head_dim,
        ]
        q, k, v = torch.split(rows, widths, dim=1)
        q = q.view(x.shape[0], shape.num_heads, shape.head_dim)
        k = k.view(x.shape[0], shape.kept_heads, shape.head_dim)
        v = v.view(x.shape[0], shape.kept_heads, shape.v_head_dim)
        apply_rope(q, k, step.cos, step.sin)
        aux = Aux(rows={"gates": sigmoid_gates(x, self.gate, 3)}, compress=self.compress)
        return linear(step.attend(self.layer, q, k, v, aux).flatten(1), self.out)
