"""RMS normalisation, optionally fused with the residual addition before it."""

from __future__ import annotations

import torch

from ..ops import Implementation, Op
from . import cpu, reference, triton

RMS_NORM = Op(
    "rms_norm",
    reference.rms_norm,
    (
        Implementation("cpu", cpu.rms_norm, cpu.supports),
        Implementation("triton", triton.rms_norm, triton.supports),
    ),
)


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    residual: torch.Tensor | None = None,
    offset: float = 0.0,
) -> torch.Tensor:
    """x / rms(x) * (offset + weight) over the last dimension, in fp32, rounded once to x's dtype.

    x: [T, n]; weight: [n]; residual: [T, n] or None; offset: 1 for weights stored around zero.
    With a residual, `residual += x` happens in place (rounded to its dtype) and the sum is what is
    normed. Raises ValueError when shapes disagree.
    """
    if x.ndim != 2 or weight.shape != x.shape[1:]:
        raise ValueError(
            f"rms_norm needs x [T, n] and weight [n], "
            f"got {tuple(x.shape)} and {tuple(weight.shape)}"
        )
    if residual is not None and residual.shape != x.shape:
        raise ValueError(
            f"rms_norm: residual {tuple(residual.shape)} differs from x {tuple(x.shape)}"
        )
    out: torch.Tensor = RMS_NORM(x, weight, eps, residual, offset)
    return out
