"""The projections of expert-choice heads: each has its own, for the rows it chose."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ...kernels.linear import PackedWeight, linear, pack
from ..attention.experts import Chosen


@dataclass(frozen=True)
class Experts:
    """Queries, keys and values of every head from the hidden state, and its way back."""

    qkv: tuple[PackedWeight, ...]  # per head [3 d, hidden]
    out: tuple[PackedWeight, ...]  # per head [hidden, d]

    @staticmethod
    def of(qkv: torch.Tensor, out: torch.Tensor) -> Experts:
        """From qkv [E, hidden, 3 d], whose columns are query, key and value, and out [E, d,
        hidden].
        """
        return Experts(tuple(pack(each.mT) for each in qkv), tuple(pack(each.mT) for each in out))

    def project(
        self, x: torch.Tensor, chosen: Chosen
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """q, k and v [N, d] of the chosen rows of x [T, hidden]."""
        parts = [linear(x[chosen.rows[pairs]], self.qkv[e]) for e, pairs in self._heads(chosen)]
        wide = self.qkv[0].out_features
        q, k, v = (torch.cat(parts) if parts else x.new_empty((0, wide))).chunk(3, dim=1)
        return q, k, v

    def add_to(self, total: torch.Tensor, y: torch.Tensor, chosen: Chosen) -> None:
        """Adds every head's share of y [N, d] to float32 rows [T, hidden], heads in order."""
        for e, pairs in self._heads(chosen):
            rows = chosen.rows[pairs]
            total[rows] += linear(y[pairs], self.out[e], torch.float32)

    def _heads(self, chosen: Chosen) -> Iterator[tuple[int, slice]]:
        """Every head that chose a row, and its pairs."""
        ends = torch.bincount(chosen.heads, minlength=len(self.qkv)).cumsum(0).tolist()
        for e, (begin, end) in enumerate(zip([0, *ends], ends, strict=False)):
            if begin < end:
                yield e, slice(begin, end)
