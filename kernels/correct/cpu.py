"""Corrections by the compiled merge: some rows at a time, so that their fp32 partial results stay
in the cache.
"""

from __future__ import annotations

import torch

from .. import native
from ..merge import MERGE
from .reference import with_empty

SLAB = 256  # rows


def supports(
    out: torch.Tensor,
    lse: torch.Tensor,
    table: torch.Tensor,
    weights: torch.Tensor | None,
    source: torch.Tensor,
    dtype: torch.dtype,
) -> str | None:
    """None when this way serves the call, otherwise the reason."""
    if not (out.is_contiguous() and lse.is_contiguous()):
        return "partial results are not contiguous"
    return native.unsupported(out, lse, table, weights)


def correct(
    out: torch.Tensor,
    lse: torch.Tensor,
    table: torch.Tensor,
    weights: torch.Tensor | None,
    source: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    """See `saccade.kernels.correct.correct`."""
    table = with_empty(table, 0.0)
    if weights is not None:
        weights = with_empty(weights, -torch.inf)
    answer = torch.empty(out.shape, dtype=dtype)
    for begin in range(0, out.shape[0], SLAB):
        rows = slice(begin, begin + SLAB)
        chosen = source[rows]
        if weights is None:
            answer[rows] = out[rows] + table[chosen]
        else:
            answer[rows] = MERGE(out[rows], lse[rows], table[chosen], weights[chosen])[0]
    return answer
