"""Learned entries of native sparse attention: a window of tokens becomes one key and one value.

Every sum runs in a fixed order over the window alone, or in a linear layer whose rows do not depend
on each other, so that an entry's bits do not depend on what else is compressed with it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...kernels.linear import PackedHeads, linear_heads, pack_heads
from ...kernels.rope import apply_rope
from ..branches import Turns
from ..checkpoint.nsa_config import NsaConfig
from .weights import Weights

Shapes = dict[str, tuple[int, ...]]


def compressor_tensors(nsa: NsaConfig, kv_heads: int, dim: int, v_dim: int) -> Shapes:
    """Name -> shape of what makes entries of keys (compress_k) and of values (compress_v).

    position [Hkv, length, d] is added to the tokens; weight (weighted: [Hkv, length], linear:
    [Hkv, d, length * d]), or up [Hkv, phi_hidden, length * d] and, behind a ReLU, down
    [Hkv, d, phi_hidden].
    """
    shapes: Shapes = {}
    for name, width in (("compress_k.", dim), ("compress_v.", v_dim)):
        flat = nsa.length * width
        if nsa.phi != "mean":
            shapes[name + "position"] = (kv_heads, nsa.length, width)
        if nsa.phi == "weighted":
            shapes[name + "weight"] = (kv_heads, nsa.length)
        if nsa.phi == "linear":
            shapes[name + "weight"] = (kv_heads, width, flat)
        if nsa.phi == "mlp":
            shapes[name + "up"] = (kv_heads, nsa.phi_hidden, flat)
            shapes[name + "down"] = (kv_heads, width, nsa.phi_hidden)
    return shapes


@dataclass(frozen=True)
class Phi:
    """What makes entries of keys, or of values. weight: float32 [Hkv, length], of a weighted sum;
    layers: linear layers of every head over the whole window, with a ReLU between.
    """

    position: torch.Tensor | None  # [length, Hkv, d], added to the tokens
    weight: torch.Tensor
    layers: tuple[PackedHeads, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        packed = sum(layer.nbytes for layer in self.layers)
        own = 0 if self.position is None else self.position.nbytes
        return packed + own + self.weight.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[n, Hkv, d] of tokens x [n, length, Hkv, d]."""
        if self.position is not None:
            x = x + self.position
        if not self.layers:
            return self._sum(x)
        flat = x.transpose(1, 2).flatten(2)
        for i, layer in enumerate(self.layers):
            flat = flat.relu() if i else flat
            made = flat.new_empty((*flat.shape[:2], layer.out_features))
            linear_heads(flat, layer, made)
            flat = made
        return flat

    def _sum(self, x: torch.Tensor) -> torch.Tensor:
        """The weighted sum in fp32, token by token, rounded once."""
        total = x[:, 0].float() * self.weight[:, :1]
        for token in range(1, x.shape[1]):
            total = total + x[:, token].float() * self.weight[:, token, None]
        return total.to(x.dtype)


class LearnedCompressor:
    """The Compressor of one layer."""

    def __init__(self, nsa: NsaConfig, kv_heads: int, name: str, weights: Weights) -> None:
        self.key, self.value = (
            _phi(nsa, kv_heads, name + part, weights) for part in ("compress_k.", "compress_v.")
        )
        self._turns_back = nsa.phi_rope == "block"

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return self.key.nbytes + self.value.nbytes

    def __call__(
        self, k: torch.Tensor, v: torch.Tensor, first: torch.Tensor, turns: Turns | None
    ) -> torch.Tensor:
        """[n, Hkv, d + dv] of k [n, length, Hkv, d], v [n, length, Hkv, dv], first int64 [n]."""
        if not self._turns_back:
            return torch.cat([self.key(k), self.value(v)], dim=-1)
        if turns is None:
            raise ValueError("nsa: keys are compressed without their rotary embedding: no angles")
        at = first[:, None] + torch.arange(k.shape[1])
        entry = self.key(_turned(k.flatten(0, 1), at.flatten(), turns, back=True).view(k.shape))
        return torch.cat([_turned(entry, first, turns, back=False), self.value(v)], dim=-1)


def _phi(nsa: NsaConfig, kv_heads: int, name: str, weights: Weights) -> Phi:
    if nsa.phi == "mean":
        share = torch.full((kv_heads, nsa.length), 1 / nsa.length)
        return Phi(None, share, ())
    position = weights.tensor(name + "position").transpose(0, 1).contiguous()
    if nsa.phi == "weighted":
        return Phi(position, weights.tensor(name + "weight").float(), ())
    names = ("weight",) if nsa.phi == "linear" else ("up", "down")
    layers = tuple(pack_heads(weights.tensor(name + each)) for each in names)
    return Phi(position, torch.empty(0), layers)


def _turned(x: torch.Tensor, positions: torch.Tensor, turns: Turns, back: bool) -> torch.Tensor:
    """x [T, Hkv, d] turned to these positions, or back from them."""
    cos, sin = turns.cos_sin(positions)
    x = x.clone()
    apply_rope(x, x[:, :0], cos, -sin if back else sin)
    return x
