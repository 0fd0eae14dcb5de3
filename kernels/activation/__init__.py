"""Gated activations of the feed-forward layer."""

from __future__ import annotations

import torch

from ..ops import Implementation, Op
from . import cpu, reference

SILU_MUL = Op("silu_mul", reference.silu_mul, (Implementation("cpu", cpu.silu_mul, cpu.supports),))


def silu_mul(x: torch.Tensor) -> torch.Tensor:
    """silu(x[:, :n]) * x[:, n:] for x [T, 2n] -> [T, n], in fp32, rounded once. ValueError for an
    odd width.
    """
    if x.ndim != 2 or x.shape[1] % 2:
        raise ValueError(f"silu_mul needs x [T, 2n], got {tuple(x.shape)}")
    out: torch.Tensor = SILU_MUL(x)
    return out
