"""Some of a step's rows, for methods that treat rows apart."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...kernels.attend import Keys
from .base import Step


@dataclass(frozen=True)
class RowSubset:
    """Rows of a step, in order, as rows of their own."""

    rows: torch.Tensor | None  # int64 [n], which they are; None: all of them
    keys: Keys  # dense
    count: int

    def of(self, x: torch.Tensor) -> torch.Tensor:
        """Of x [T, ...] these rows, [n, ...]."""
        return x if self.rows is None else x[self.rows]

    def choose(self, mine: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        """[T]: of `mine` in these rows, of `others` in the rest."""
        if self.rows is None:
            return mine
        chosen = others.clone()
        chosen[self.rows] = mine[self.rows]
        return chosen


def row_subset(step: Step, wanted: torch.Tensor) -> RowSubset:
    """The rows where `wanted`, bool [T], holds; a sequence may have none of them."""
    if bool(wanted.all()):
        keys = Keys(step.cu_rows, step.positions, step.page_table, spans=step.spans)
        return RowSubset(None, keys, step.positions.shape[0])
    rows = torch.nonzero(wanted).flatten()
    cu_rows = torch.searchsorted(rows, step.cu_rows.long()).int()
    keys = Keys(cu_rows, step.positions[rows], step.page_table)
    return RowSubset(rows, keys, rows.shape[0])
