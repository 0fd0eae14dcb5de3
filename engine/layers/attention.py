"""The attention layer: projections, norms, rotary embedding, gates; its method does the rest."""

from __future__ import annotations

from typing import Protocol

import torch

from ...kernels.activation import sigmoid_mul
from ...kernels.linear import PackedWeight, linear
from ...kernels.rope import apply_rope
from ..attention.base import Aux, LayerShape
from ..attention.experts import Chosen
from ..checkpoint.config_json import ModelConfig
from .head_rows import attention_tensors, gates_per_head, row_order
from .norm import Norm
from .weights import Weights


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

    def convolve(self, layer: int, k: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Keys [T, Hkv, d] over the tokens before each: k[t] + silu(sum of weight[l] * k[t - l]).

        weight: [taps, Hkv, d].
        """
        ...

    @property
    def tokens(self) -> torch.Tensor:
        """int64 [T], the token of each row."""
        ...

    def recall(
        self, layer: int, name: str, x: torch.Tensor, weight: torch.Tensor, dilation: int = 1
    ) -> torch.Tensor:
        """silu of the causal convolution of x [T, C] by weight [taps, C], in a recurrent layer.

        name: of the page field that keeps its last inputs. dilation: tokens from tap to tap.
        """
        ...

    def recur(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        decay: torch.Tensor,
        beta: torch.Tensor,
    ) -> torch.Tensor:
        """What the rows read of a recurrent layer's state [T, H, dv]; after all its `recall`s."""
        ...

    def tokens_before(self, count: int) -> torch.Tensor:
        """int64 [T, count]: the token 1, 2 ... before each row; -1 where a text begins later."""
        ...

    def choose(self, layer: int, scores: torch.Tensor, thresholds: torch.Tensor | None) -> Chosen:
        """The rows that each expert-choice head chooses by its router's scores, float32 [T, E]."""
        ...

    def attend_chosen(
        self, layer: int, chosen: Chosen, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> torch.Tensor:
        """Keeps k and v [N, d] of the chosen rows; their attention output, float32 [N, d]."""
        ...


class Attention:
    """Grouped-query attention of one layer, by the method that the step's context has for it.

    What only some checkpoints have, `ModelConfig.features` says: sink logits, gates on the output
    or a norm of it, layers without rotary embedding, convolved keys.
    """

    def __init__(self, config: ModelConfig, layer: int, weights: Weights) -> None:
        name, features = f"model.layers.{layer}.self_attn.", config.features
        self.layer = layer
        self.shape = self.shape_of(config, layer)
        self.qkv = weights.projection(
            name + "q_proj",
            name + "k_proj",
            name + "v_proj",
            bias=config.qkv_bias,
            order=row_order(config),
        )
        self.q_norm = self.k_norm = self.out_norm = None
        if config.qk_norm:
            eps = features.qk_norm_eps or config.rms_norm_eps
            self.q_norm, self.k_norm = (
                Norm(weights.tensor(name + f"{part}_norm.weight"), eps, features.norm_offset)
                for part in ("q", "k")
            )
        self.conv = None
        if self.shape.key_taps:  # stored as torch's Conv1d does, the row's own key last
            stored = weights.tensor(name + "k_conv.weight").squeeze(1).T.flip(0)
            self.conv = stored.reshape(-1, config.num_kv_heads, config.head_dim)
        gammas = config.gammas
        self.aux = Aux(
            weights.tensor(name + "sinks").float() if features.sinks else None,
            torch.tensor(gammas.rows[layer]) if gammas else None,
        )
        if features.output_norm_eps is not None:
            self.out_norm = Norm(weights.tensor(name + "o_norm.weight"), features.output_norm_eps)
        self.gate = gate_projections(config, name, weights)
        self.out = weights.projection(name + "o_proj", bias=config.output_bias)

    @staticmethod
    def shape_of(config: ModelConfig, layer: int) -> LayerShape:
        """The attention geometry of one layer."""
        return LayerShape(
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            v_head_dim=config.head_dim,
            scale=config.features.scale or config.head_dim**-0.5,
            window=config.windows[layer],
            sinks=config.features.sinks,
            gammas=config.gammas.digest if config.gammas else "",
            rotates=layer not in config.features.unrotated,
            key_taps=config.features.key_taps if layer in config.features.convolved else 0,
        )

    @staticmethod
    def tensors(config: ModelConfig, layer: int) -> dict[str, tuple[int, ...]]:
        """Name -> shape, as the Hugging Face classes name them."""
        return attention_tensors(config, layer)

    @staticmethod
    def spare_elements(config: ModelConfig) -> int:
        """None: every weight is kept once."""
        return 0

    @staticmethod
    def scratch_bytes(config: ModelConfig, dtype: torch.dtype, tokens: int, seqs: int) -> int:
        """The gates, the output once more where it is normed or gated, and convolved keys."""
        features, gates = config.features, config.num_heads * gates_per_head(config)
        copies = config.num_kv_heads if features.convolved else 0
        if features.gate is not None or features.output_norm_eps is not None:
            copies += config.num_heads
        return tokens * (gates + copies * config.head_dim) * dtype.itemsize

    def __call__(self, x: torch.Tensor, step: AttentionContext) -> torch.Tensor:
        """x: [T, hidden], normed -> [T, hidden], to be added to the residual stream."""
        heads, kv_heads, dim = self.shape.num_heads, self.shape.num_kv_heads, self.shape.head_dim
        rows = linear(x, self.qkv)
        width = heads + 2 * kv_heads
        qkv = rows[:, : width * dim].view(x.shape[0], width, dim)
        q, k, v = qkv.split_with_sizes([heads, kv_heads, kv_heads], 1)  # views, turned in place
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm.each_head(q), self.k_norm.each_head(k)
        if self.conv is not None:
            k = step.convolve(self.layer, k, self.conv)
        if self.shape.rotates:
            apply_rope(q, k, step.cos, step.sin)
        out = step.attend(self.layer, q, k, v, self.aux_of(x, step))
        if self.out_norm is not None:
            out = self.out_norm.each_head(out)
        return linear(self._gated(out.flatten(1), x, rows[:, width * dim :]), self.out)

    def aux_of(self, x: torch.Tensor, step: AttentionContext) -> Aux:
        """What the method gets besides queries, keys and values."""
        return self.aux

    def _gated(self, out: torch.Tensor, x: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
        """The output [T, H * d] of all heads by their gates: those of projections of their own, or
        else those that `gates` holds, if any.
        """
        if self.gate:
            gates = x
            for projection in self.gate:
                gates = linear(gates, projection)
        return sigmoid_mul(out, gates) if gates.shape[1] else out


def gate_projections(config: ModelConfig, name: str, weights: Weights) -> list[PackedWeight]:
    """What makes the gates of a layer's input, one projection after the other; none: the product of
    the queries has them, or there are none.
    """
    packing = config.features.gate.packing if config.features.gate else ""
    if packing == "low_rank":
        return [weights.projection(name + f"g_proj.{i}") for i in (0, 1)]
    if packing == "branch":
        selected = torch.arange(1, 3 * config.num_heads, 3)
        return [weights.projection(name + "g_proj", order=selected)]
    return []
