"""Projections of chosen rows, in plain torch: of all rows, and then what was not chosen is 0."""

from __future__ import annotations

import torch

from ..linear import PackedHeads


def project_chosen(x: torch.Tensor, weight: PackedHeads, chosen: torch.Tensor) -> torch.Tensor:
    """See `saccade.kernels.chosen.project_chosen`."""
    wide = torch.promote_types(x.dtype, torch.float32)
    out = x.to(wide) @ weight.data.to(wide).mT
    return out.where(chosen[..., None], 0.0).to(x.dtype)


def add_chosen(
    total: torch.Tensor, y: torch.Tensor, weight: PackedHeads, chosen: torch.Tensor
) -> None:
    """See `saccade.kernels.chosen.add_chosen`."""
    wide = torch.promote_types(y.dtype, torch.float32)
    for e in range(len(weight)):
        own = y[e].to(wide) @ weight.data[e].to(wide).T
        total += own.where(chosen[e, :, None], 0.0)
