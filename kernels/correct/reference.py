"""Corrections in plain torch."""

from __future__ import annotations

import torch

from ..merge.reference import merge


def correct(
    out: torch.Tensor,
    lse: torch.Tensor,
    table: torch.Tensor,
    weights: torch.Tensor | None,
    source: torch.Tensor,
    dtype: torch.dtype,
    into: torch.Tensor | None = None,
) -> torch.Tensor:
    """See `saccade.kernels.correct.correct`."""
    found = with_empty(table, 0.0)[source]
    if weights is None:
        answer = (out + found).to(dtype)
    else:
        answer = merge(out, lse, found, with_empty(weights, -torch.inf)[source])[0].to(dtype)
    return answer if into is None else into.copy_(answer)


def with_empty(rows: torch.Tensor, value: float) -> torch.Tensor:
    """One more row at the end, of `value`."""
    return (
        torch.cat([rows, torch.full_like(rows[:1], value)])
        if rows.shape[0]
        else rows.new_full((1, *rows.shape[1:]), value)
    )
