"""One call of `compressed`, as its implementations take it."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..select import Candidates
from ..store import unwritten
from .lists import ListRule, Spans


class CompressedCall(NamedTuple):
    """The arguments of `saccade.kernels.compressed.compressed`, whose door has checked them.

    q: [T, H, d]; entries: [pages, slots, G, width], of q's dtype.
    """

    q: torch.Tensor
    entries: torch.Tensor
    candidates: Candidates
    rule: ListRule | None
    scale: float
    value_dim: int
    spans: Spans
    value_first: int

    @property
    def owners(self) -> int:
        """G, the lists of a row."""
        return self.entries.shape[2]

    @property
    def group(self) -> int:
        """Query heads of an owner."""
        return self.q.shape[1] // self.entries.shape[2]

    @property
    def listed(self) -> int:
        """Blocks of a list; 0 where none is chosen."""
        return self.rule.listed if self.rule else 0

    def results(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Memory for out [T, H, value_dim], lse float32 [T, H] and ids int32 [T, G, listed], not
        yet written.
        """
        rows, heads, _ = self.q.shape
        return (
            unwritten((rows, heads, self.value_dim), self.q.dtype, self.q.device),
            self.q.new_empty((rows, heads), dtype=torch.float32),
            self.q.new_empty((rows, self.owners, self.listed), dtype=torch.int32),
        )
