"""Linear layers over weights packed once at load time."""

from __future__ import annotations

import torch

from ..ops import Implementation, Op
from . import cpu, reference
from .packed import PANEL, PackedWeight, pack

__all__ = ["LINEAR", "PANEL", "PackedWeight", "linear", "pack"]

LINEAR = Op("linear", reference.linear, (Implementation("cpu", cpu.linear, cpu.supports),))


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
