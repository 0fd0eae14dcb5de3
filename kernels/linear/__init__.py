"""Linear layers over weights packed once at load time."""

from __future__ import annotations

import torch

from ..ops import Implementation, Op
from . import cpu, library, reference
from .packed import PANEL, PackedHeads, PackedWeight, pack, pack_heads

__all__ = [
    "LINEAR",
    "LINEAR_HEADS",
    "PANEL",
    "PackedHeads",
    "PackedWeight",
    "linear",
    "linear_heads",
    "pack",
    "pack_heads",
]

LINEAR = Op(
    "linear",
    reference.linear,
    (
        Implementation("cpu", cpu.linear, cpu.supports),
        Implementation("library", library.linear, library.supports),
    ),
)

LINEAR_HEADS = Op(
    "linear_heads",
    reference.linear_heads,
    (
        Implementation("cpu", cpu.linear_heads, cpu.supports_heads),
        Implementation("library", library.linear_heads, library.supports_heads),
    ),
)


def linear(
    x: torch.Tensor, weight: PackedWeight, out_dtype: torch.dtype | None = None
) -> torch.Tensor:
    """x @ W^T + bias for x [T, in] -> [T, out] in `out_dtype` (default: x's), accumulated in fp32.

    A row's result does not depend on the other rows: any cut of a batch gives the same bits
    (compiled kernel). Raises ValueError when widths or dtypes disagree.
    """
    if x.ndim != 2 or x.shape[1] != weight.in_features:
        raise ValueError(f"linear needs x [T, {weight.in_features}], got {tuple(x.shape)}")
    if x.dtype != weight.dtype:
        raise ValueError(f"linear: x is {x.dtype}, the weight {weight.dtype}")
    out: torch.Tensor = LINEAR(x, weight, out_dtype or x.dtype)
    return out


def linear_heads(x: torch.Tensor, weight: PackedHeads, out: torch.Tensor) -> None:
    """out[:, h] = x[:, h] @ W_h^T for x [T, H, in] and out [T, H, out], of one dtype; views whose
    last dimension is contiguous will do. As `linear`, a row's result does not depend on the others.

    Raises ValueError when shapes or dtypes disagree.
    """
    heads, wide = len(weight), (weight.in_features, weight.out_features)
    if x.ndim != 3 or x.shape[1:] != (heads, wide[0]) or out.shape != (len(x), heads, wide[1]):
        raise ValueError(
            f"linear_heads needs x [T, {heads}, {wide[0]}] and out [T, {heads}, {wide[1]}], "
            f"got {tuple(x.shape)} and {tuple(out.shape)}"
        )
    if not x.dtype == out.dtype == weight.data.dtype:
        raise ValueError(
            f"linear_heads: x is {x.dtype}, out {out.dtype}, the weight {weight.data.dtype}"
        )
    LINEAR_HEADS(x, weight, out)
