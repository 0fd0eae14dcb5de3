"""Feed-forward layers of experts: every row goes through a few, and adds up what they say."""

from __future__ import annotations

import torch

from ..ops import Implementation, Op
from . import cpu, reference, triton
from .rule import gpu_scratch_bytes
from .weights import ExpertWeights

__all__ = ["EXPERTS", "ExpertWeights", "experts", "gpu_scratch_bytes"]

EXPERTS = Op(
    "experts",
    reference.experts,
    (
        Implementation("cpu", cpu.experts, cpu.supports),
        Implementation("triton", triton.experts, triton.supports),
    ),
)


def experts(
    x: torch.Tensor, chosen: torch.Tensor, shares: torch.Tensor, weights: ExpertWeights
) -> torch.Tensor:
    """float32 [T, hidden]: what the chosen experts make of x [T, hidden], by their shares.

    y[t] is the sum over j of shares[t, j] * down[e] @ act(gate_up[e] @ x[t]), e = chosen[t, j];
    chosen: int64 [T, k], each an expert; shares: float32 [T, k]. The activation is rounded to x's
    dtype; a row adds up its experts in ascending order, in fp32, so that its bits do not depend on
    the rows around it. Raises ValueError when shapes or dtypes disagree.
    """
    if x.ndim != 2 or x.shape[1] != weights.hidden or x.dtype != weights.gate_up.data.dtype:
        raise ValueError(
            f"experts need x [T, {weights.hidden}] of {weights.gate_up.data.dtype}, "
            f"got {x.dtype} {tuple(x.shape)}"
        )
    if chosen.ndim != 2 or chosen.shape[0] != x.shape[0] or chosen.dtype != torch.int64:
        raise ValueError(
            f"experts: chosen must be int64 [{x.shape[0]}, k], got {chosen.dtype} "
            f"{tuple(chosen.shape)}"
        )
    if shares.shape != chosen.shape or shares.dtype != torch.float32:
        raise ValueError(
            f"experts: shares must be float32 {tuple(chosen.shape)}, got {shares.dtype} "
            f"{tuple(shares.shape)}"
        )
    out: torch.Tensor = EXPERTS(x, chosen, shares, weights)
    return out
