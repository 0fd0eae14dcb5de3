"""In which order rows change the states, and where states come from and go to."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .. import gpu


@dataclass(frozen=True)
class Walk:
    """Sequences of rows; sequence s goes through rows[cu[s]] .. rows[cu[s + 1] - 1].

    cu: int64 [S + 1]; rows: int64 [T], every row once; load: int64 [S], the state that a sequence
    begins with, -1: zeros; store: int64 [T], beside `rows`: where the state behind a row is
    written, -1: nowhere. No sequence writes what any reads.
    """

    cu: torch.Tensor
    rows: torch.Tensor
    load: torch.Tensor
    store: torch.Tensor

    def check(self, rows: int, states: int) -> None:
        """ValueError unless it goes over so many rows and states; on a GPU shapes alone are looked
        at, for numbers would have to be waited for: there kernels leave out states beyond. Numbers
        are looked at once, however many layers go this way.
        """
        parts = (self.cu, self.rows, self.load, self.store)
        if any(part.dtype != torch.int64 or part.ndim != 1 for part in parts):
            raise ValueError("gated_delta: a walk is made of int64 vectors")
        if self.rows.shape != (rows,) or self.store.shape != (rows,):
            raise ValueError(f"gated_delta: the walk must go over {rows} rows, in `store` too")
        if self.load.shape[0] != self.cu.shape[0] - 1:
            count = self.cu.shape[0] - 1
            raise ValueError(f"gated_delta: {count} sequences need as many loads")
        if not gpu.serves(self.cu) and self.__dict__.get("checked") != (rows, states):
            self._check_numbers(rows, states)
            self.__dict__["checked"] = rows, states

    def _check_numbers(self, rows: int, states: int) -> None:
        bounds = self.cu.tolist()
        if bounds != sorted(bounds) or not bounds or bounds[0] != 0 or bounds[-1] != rows:
            raise ValueError(f"gated_delta: cu must ascend from 0 to {rows}, got {bounds[:8]}")
        if int(self.rows.min()) < 0 or int(self.rows.max()) >= rows:
            raise ValueError(f"gated_delta: the walk has rows beyond {rows}")
        for part in (self.load, self.store):
            if part.numel() and not -1 <= int(part.min()) <= int(part.max()) < states:
                raise ValueError(f"gated_delta: the walk has states beyond {states}")
