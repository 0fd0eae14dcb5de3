"""Projections of the rows that heads choose, each head with weights of its own: of a head that
chose none nothing is read. The shapes do not tell what was chosen.
"""

from __future__ import annotations

import torch

from ..linear import PackedHeads
from ..ops import Implementation, Op
from . import reference, triton

__all__ = ["ADD_CHOSEN", "PROJECT_CHOSEN", "add_chosen", "project_chosen"]

PROJECT_CHOSEN = Op(
    "project_chosen",
    reference.project_chosen,
    (Implementation("triton", triton.project_chosen, triton.supports),),
)
ADD_CHOSEN = Op(
    "add_chosen",
    reference.add_chosen,
    (Implementation("triton", triton.add_chosen, triton.adds),),
)


def project_chosen(x: torch.Tensor, weight: PackedHeads, chosen: torch.Tensor) -> torch.Tensor:
    """[E, T, out] in x's dtype: x [T, in] @ W_e^T of the rows that head e chose, summed in fp32,
    and 0 of all others. chosen: bool [E, T]; weight: as rows (`PackedHeads.as_rows`).

    Raises ValueError when shapes or dtypes disagree.
    """
    _check(weight, chosen, x.dtype)
    if x.shape != (chosen.shape[1], weight.in_features):
        raise ValueError(
            f"project_chosen: x {tuple(x.shape)} must be [{chosen.shape[1]}, {weight.in_features}]"
        )
    out: torch.Tensor = PROJECT_CHOSEN(x, weight, chosen)
    return out


def add_chosen(
    total: torch.Tensor, y: torch.Tensor, weight: PackedHeads, chosen: torch.Tensor
) -> None:
    """total[t] += y[e, t] @ W_e^T of every head that chose row t, one head after the other.

    total: float32 [T, out]; y: [E, T, in]; chosen, weight: as in `project_chosen`. Raises
    ValueError when shapes or dtypes disagree.
    """
    _check(weight, chosen, y.dtype)
    if y.shape != (*chosen.shape, weight.in_features):
        raise ValueError(
            f"add_chosen: y {tuple(y.shape)} must be {[*chosen.shape, weight.in_features]}"
        )
    if total.shape != (chosen.shape[1], weight.out_features) or total.dtype != torch.float32:
        raise ValueError(
            f"add_chosen: total must be float32 [{chosen.shape[1]}, {weight.out_features}], "
            f"got {total.dtype} {tuple(total.shape)}"
        )
    ADD_CHOSEN(total, y, weight, chosen)


def _check(weight: PackedHeads, chosen: torch.Tensor, dtype: torch.dtype) -> None:
    if weight.data.ndim != 3 or weight.data.dtype != dtype:
        raise ValueError(f"chosen rows: weights must be rows of {dtype}, got {weight.data.dtype}")
    if chosen.ndim != 2 or chosen.shape[0] != len(weight) or chosen.dtype != torch.bool:
        raise ValueError(
            f"chosen rows: chosen must be bool [{len(weight)}, T], got {tuple(chosen.shape)}"
        )
