"""The layer of Gated DeltaNet: a state that forgets, and corrects what it predicts wrong."""

from __future__ import annotations

import torch

from ...kernels.activation import sigmoid_mul
from ...kernels.linear import linear
from ..attention.base import LayerShape
from ..checkpoint.config_json import ModelConfig
from ..checkpoint.features import DeltaNet
from ..recurrent_shape import RecurrentShape, Tail
from .attention import AttentionContext
from .ngram import ngram_tails, ngram_window
from .norm import Norm
from .weights import Weights

INPUTS = "recurrent_inputs"  # the page field of the last inputs of the convolution


def deltanet_of(config: ModelConfig) -> DeltaNet:
    """The sizes of the model's recurrent layers; ValueError for one without any."""
    if config.features.deltanet is None:
        raise ValueError("a layer of Gated DeltaNet needs the config's sizes")
    return config.features.deltanet


class DeltaNetLayer:
    """Queries, keys and values over a short convolution; per head, how much the state forgets and
    how much of the new value it takes; the output normed per head, behind a gate.
    """

    def __init__(self, config: ModelConfig, layer: int, weights: Weights) -> None:
        name, sizes = f"model.layers.{layer}.linear_attn.", deltanet_of(config)
        self.layer, self.sizes = layer, sizes
        self.shape = self.shape_of(config, layer)
        self.inputs = weights.projection(
            *(name + part for part in _projections(sizes)), order=_row_order(sizes)
        )
        # Stored as torch's Conv1d does, the row's own input last.
        self.conv = weights.tensor(name + "conv1d.weight").squeeze(1).T.flip(0).contiguous()
        self.forget = weights.exact(name + "A_log").double().exp()
        self.bias = weights.exact(name + "dt_bias")
        self.norm = Norm(weights.tensor(name + "norm.weight"), config.rms_norm_eps)
        self.out = weights.projection(name + "out_proj")

    @staticmethod
    def shape_of(config: ModelConfig, layer: int) -> LayerShape:
        """What a page keeps of one layer; it has no keys."""
        sizes = deltanet_of(config)
        tails = (Tail(INPUTS, sizes.taps, sizes.width), *ngram_tails(config, layer))
        return LayerShape(
            num_heads=sizes.heads,
            num_kv_heads=0,
            head_dim=sizes.key_dim,
            v_head_dim=sizes.value_dim,
            scale=sizes.key_dim**-0.5,
            recurrent=RecurrentShape(
                sizes.heads, sizes.key_dim, sizes.value_dim, tails, ngram_window(config, layer)
            ),
        )

    @staticmethod
    def tensors(config: ModelConfig, layer: int) -> dict[str, tuple[int, ...]]:
        """Name -> shape, as the Hugging Face classes name them."""
        sizes, hidden = deltanet_of(config), config.hidden_size
        values = sizes.heads * sizes.value_dim
        return {
            **{f"{name}.weight": (rows, hidden) for name, rows in _projections(sizes).items()},
            "conv1d.weight": (sizes.width, 1, sizes.taps),
            "A_log": (sizes.heads,),
            "dt_bias": (sizes.heads,),
            "norm.weight": (sizes.value_dim,),
            "out_proj.weight": (hidden, values),
        }

    @staticmethod
    def spare_elements(config: ModelConfig) -> int:
        """None: every weight is kept once."""
        return 0

    @staticmethod
    def scratch_bytes(config: ModelConfig, dtype: torch.dtype, tokens: int, seqs: int) -> int:
        """Projections, inputs as convolved, outputs as normed and gated; earlier inputs twice."""
        sizes = deltanet_of(config)
        values = sizes.heads * sizes.value_dim
        row = (2 * sizes.width + 5 * values + 2 * sizes.heads) * dtype.itemsize + 40 * sizes.heads
        tails = 3 * sizes.taps * sizes.width * dtype.itemsize
        return tokens * (row + 16 * sizes.taps) + (seqs + tokens // 16) * tails

    def __call__(self, x: torch.Tensor, step: AttentionContext) -> torch.Tensor:
        """x: [T, hidden] -> [T, hidden], to be added to the residual stream."""
        sizes = self.sizes
        values = sizes.heads * sizes.value_dim
        widths = [sizes.width, values, sizes.heads, sizes.heads]
        mixed, gate, take, forget = torch.split(linear(x, self.inputs), widths, dim=1)
        mixed = step.recall(self.layer, INPUTS, mixed, self.conv)
        keys = sizes.key_heads * sizes.key_dim
        q, k, v = torch.split(mixed, [keys, keys, values], dim=1)
        decay, beta = self._gates(forget, take)
        out = step.recur(
            self.layer,
            q.view(-1, sizes.key_heads, sizes.key_dim),
            k.view(-1, sizes.key_heads, sizes.key_dim),
            v.view(-1, sizes.heads, sizes.value_dim),
            decay,
            beta,
        )
        out = self.norm.each_head(out).flatten(1)
        if sizes.gate == "sigmoid":
            return linear(sigmoid_mul(out, gate), self.out)
        return linear(out * sigmoid_mul(gate, gate), self.out)

    def _gates(self, forget: torch.Tensor, take: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """float32 [T, H] each: what is left of the state, and what it takes of the new value.

        In fp64, whose last bit, which a vector routine may round by the element's place, does not
        survive the rounding to fp32.
        """
        rate = torch.nn.functional.softplus((forget.float() + self.bias).double())
        return (-self.forget * rate).exp().float(), take.double().sigmoid().float()


def _projections(sizes: DeltaNet) -> dict[str, int]:
    """Name -> rows, in the order in which they are joined."""
    values = sizes.heads * sizes.value_dim
    if sizes.packed:
        return {"in_proj_qkvz": sizes.width + values, "in_proj_ba": 2 * sizes.heads}
    return {
        "in_proj_qkv": sizes.width,
        "in_proj_z": values,
        "in_proj_b": sizes.heads,
        "in_proj_a": sizes.heads,
    }


def _row_order(sizes: DeltaNet) -> torch.Tensor | None:
    """int64: for queries, keys, values, output gates and the two gates of the state, one behind the
    other, where their rows lie in a packed checkpoint; None: there.
    """
    if not sizes.packed:
        return None
    group = sizes.heads // sizes.key_heads
    widths = [sizes.key_dim, sizes.key_dim, group * sizes.value_dim, group * sizes.value_dim]
    rows = torch.arange(sizes.key_heads * sum(widths)).view(sizes.key_heads, -1)
    gates = torch.arange(2 * sizes.heads).view(sizes.key_heads, -1) + rows.numel()
    parts = [*torch.split(rows, widths, dim=1), *torch.split(gates, [group, group], dim=1)]
    return torch.cat([part.flatten() for part in parts])
