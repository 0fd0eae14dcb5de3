"""Attention branches added up under gates."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..ops import Implementation, Op
from . import cpu, reference, triton

__all__ = ["GATED_SUM", "gated_sum"]

GATED_SUM = Op(
    "gated_sum",
    reference.gated_sum,
    (
        Implementation("cpu", cpu.gated_sum, cpu.supports),
        Implementation("triton", triton.gated_sum, triton.supports),
    ),
)
MOST = 4


def gated_sum(parts: Sequence[torch.Tensor], gates: torch.Tensor) -> torch.Tensor:
    """The sum of parts[i] * gates[..., i], in order, in fp32, rounded once.

    parts: 1 .. 4 of [T, H, dv] of one dtype; gates: float32 [T, H, len(parts)]. Returns [T, H, dv].
    Raises ValueError when shapes or dtypes disagree.
    """
    if not 1 <= len(parts) <= MOST or gates.dtype != torch.float32:
        raise ValueError(f"gated_sum: {len(parts)} parts and gates {gates.dtype} do not fit")
    first = parts[0]
    if first.ndim != 3 or gates.shape != (*first.shape[:2], len(parts)):
        raise ValueError(
            f"gated_sum: parts {tuple(first.shape)} need gates {(*first.shape[:2], len(parts))}, "
            f"got {tuple(gates.shape)}"
        )
    if any(part.shape != first.shape or part.dtype != first.dtype for part in parts):
        raise ValueError("gated_sum: parts must share a shape and a dtype")
    total: torch.Tensor = GATED_SUM(tuple(parts), gates)
    return total
