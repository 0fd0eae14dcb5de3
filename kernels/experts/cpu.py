"""Layers of experts on the processor: an expert takes the rows that chose it as one batch."""

from __future__ import annotations

import torch

from .. import native
from ..activation import silu_mul, swiglu
from ..linear import linear
from .weights import ExpertWeights


def supports(
    x: torch.Tensor, chosen: torch.Tensor, shares: torch.Tensor, weights: ExpertWeights
) -> str | None:
    """None when the kernels can serve this call, otherwise the reason."""
    if weights.gate_up.data.ndim == 3:
        return "the weights are not packed"
    return native.unsupported(x, weights.gate_up.data, weights.down.data)


def experts(
    x: torch.Tensor, chosen: torch.Tensor, shares: torch.Tensor, weights: ExpertWeights
) -> torch.Tensor:
    """See `saccade.kernels.experts.experts`."""
    out = torch.zeros(x.shape, dtype=torch.float32)
    for number in sorted({*chosen.flatten().tolist()}):
        rows, place = torch.nonzero(chosen == number, as_tuple=True)
        both = linear(x[rows], weights.gate_up.head(number))
        inner = silu_mul(both) if weights.swiglu is None else swiglu(both, *weights.swiglu)
        said = linear(inner, weights.down.head(number), torch.float32)
        out.index_add_(0, rows, said * shares[rows, place, None])
    return out
