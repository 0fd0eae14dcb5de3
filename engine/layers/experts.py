"""The projections of expert-choice heads: each has its own, for the rows it chose."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ...kernels.chosen import add_chosen, project_chosen
from ...kernels.linear import PackedHeads, linear, pack_heads
from ..attention.experts import Chosen, EveryPair


@dataclass(frozen=True)
class Experts:
    """Queries, keys and values of every head from the hidden state, and its way back."""

    qkv: PackedHeads  # per head [3 d, hidden]
    out: PackedHeads  # per head [hidden, d]

    @staticmethod
    def of(qkv: torch.Tensor, out: torch.Tensor) -> Experts:
        """From qkv [E, hidden, 3 d], whose columns are query, key and value, and out [E, d,
        hidden].
        """
        return Experts(pack_heads(qkv.mT), pack_heads(out.mT))

    def project(
        self, x: torch.Tensor, chosen: Chosen
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """q, k and v [N, d] of the chosen rows of x [T, hidden]; 0 of pairs that are not chosen."""
        if isinstance(chosen, EveryPair):
            every = project_chosen(x, self.qkv, chosen.chosen.view(len(self.qkv), -1))
            q, k, v = every.flatten(0, 1).chunk(3, dim=1)
            return q, k, v
        parts = [
            linear(x[chosen.rows[pairs]], self.qkv.head(e)) for e, pairs in self._heads(chosen)
        ]
        wide = self.qkv.out_features
        q, k, v = (torch.cat(parts) if parts else x.new_empty((0, wide))).chunk(3, dim=1)
        return q, k, v

    def add_to(self, total: torch.Tensor, y: torch.Tensor, chosen: Chosen) -> None:
        """Adds every head's share of y [N, d] to float32 rows [T, hidden], heads in order."""
        if isinstance(chosen, EveryPair):
            flags = chosen.chosen.view(len(self.out), -1)
            add_chosen(total, y.view(*flags.shape, -1), self.out, flags)
            return
        for e, pairs in self._heads(chosen):
            rows = chosen.rows[pairs]
            total[rows] += linear(y[pairs], self.out.head(e), torch.float32)

    def _heads(self, chosen: Chosen) -> Iterator[tuple[int, slice]]:
        """Every head that chose a row, and its pairs."""
        ends = torch.bincount(chosen.heads, minlength=len(self.qkv)).cumsum(0).tolist()
        for e, (begin, end) in enumerate(zip([0, *ends], ends, strict=False)):
            if begin < end:
                yield e, slice(begin, end)
