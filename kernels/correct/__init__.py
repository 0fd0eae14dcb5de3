"""Partial attention results corrected by the results of other rows (delta attention)."""

from __future__ import annotations

import torch

from ..ops import Implementation, Op
from . import cpu, reference, triton

__all__ = ["CORRECT", "correct"]

CORRECT = Op(
    "correct",
    reference.correct,
    (
        Implementation("cpu", cpu.correct, cpu.supports),
        Implementation("triton", triton.correct, triton.supports),
    ),
)


def correct(
    out: torch.Tensor,
    lse: torch.Tensor,
    table: torch.Tensor,
    weights: torch.Tensor | None,
    source: torch.Tensor,
    dtype: torch.dtype,
    into: torch.Tensor | None = None,
) -> torch.Tensor:
    """Every row of `out` with row source[i] of `table`, in `dtype`: rounded once.

    out: float32 [T, H, dv], lse float32 [T, H], as attention answers; table: float32 [E, H, dv];
    source: int64 [T], E where there is nothing to correct. weights: float32 [E, H], the lse of the
    table's rows, and the two are merged as results over disjoint keys; None: they are added.
    Returns [T, H, dv], written to `into` if it is given. Raises ValueError when shapes or dtypes
    disagree.
    """
    if out.ndim != 3 or lse.shape != out.shape[:2] or table.shape[1:] != out.shape[1:]:
        raise ValueError(
            f"correct: out {tuple(out.shape)}, lse {tuple(lse.shape)} and table "
            f"{tuple(table.shape)} do not fit"
        )
    if weights is not None and weights.shape != table.shape[:2]:
        raise ValueError(f"correct: weights must be {tuple(table.shape[:2])}")
    if source.shape != out.shape[:1] or source.dtype != torch.int64:
        raise ValueError(f"correct: source must be int64 [{out.shape[0]}]")
    if any(x is not None and x.dtype != torch.float32 for x in (out, lse, table, weights)):
        raise ValueError("correct: partial results must be float32")
    if into is not None and (into.shape != out.shape or into.dtype != dtype):
        raise ValueError(f"correct: into must be {dtype} {tuple(out.shape)}")
    answer: torch.Tensor = CORRECT(out, lse, table, weights, source, dtype, into)
    return answer
