"""Joining partial attention results over disjoint key sets."""

from __future__ import annotations

import torch

from ..ops import Implementation, Op
from . import cpu, reference, triton

MERGE = Op(
    "merge",
    reference.merge,
    (
        Implementation("cpu", cpu.merge, cpu.supports),
        Implementation("triton", triton.merge, triton.supports),
    ),
)


def merge(
    out_a: torch.Tensor, lse_a: torch.Tensor, out_b: torch.Tensor, lse_b: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The attention result over the union of two disjoint key sets.

    out_*: [T, H, dv] of one dtype; lse_*: float32 [T, H], natural log, -inf where the set is empty.
    Returns (out, lse) of the same shapes. An empty side leaves the other unchanged, bit for bit;
    two empty sides give 0 and -inf. Raises ValueError when shapes or dtypes disagree.
    """
    if out_a.shape != out_b.shape or lse_a.shape != lse_b.shape or lse_a.shape != out_a.shape[:2]:
        raise ValueError(
            f"merge: out {tuple(out_a.shape)}, {tuple(out_b.shape)}; "
            f"lse {tuple(lse_a.shape)}, {tuple(lse_b.shape)}"
        )
    if out_a.dtype != out_b.dtype or lse_a.dtype != torch.float32 or lse_b.dtype != torch.float32:
        raise ValueError("merge: partial results must share a dtype and lse must be float32")
    out, lse = MERGE(out_a, lse_a, out_b, lse_b)
    return out, lse
