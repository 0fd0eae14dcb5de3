"""The lists of expert-choice heads as the kernels see them: every head of every sequence is a
sequence of one head, over pages of one head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...kernels.attend import Keys, attend
from ...kernels.store import PageLayout, write_pages
from ...kernels.turns import attend_turns
from .experts import Chosen, EveryPair, KeptCache


@dataclass(frozen=True)
class KeptLists:
    """The lists of one layer in one step.

    table: int32 [S, max pages], pages of kept tokens. sequence: int64 [T], of each row. positions:
    int64 [T]. grow: what is in a list never moves.
    """

    layout: PageLayout
    cache: KeptCache
    table: torch.Tensor
    sequence: torch.Tensor
    positions: torch.Tensor
    grow: bool

    def note(self, chosen: Chosen) -> None:
        """Positions and scores of chosen tokens."""
        slots, positions = self._slots(chosen), self.positions[chosen.rows].int()
        known = self.cache.positions.view(-1), self.cache.scores.view(-1)
        if not isinstance(chosen, EveryPair):
            known[0][slots], known[1][slots] = positions, chosen.scores
            return
        # What was not chosen leaves its list's first slot, which no other pair has, as it is.
        heads, size = self.cache.scores.shape[1:]
        first = (self.table[chosen.rows, 0].long().clamp(min=0) * heads + chosen.heads) * size
        slots = slots.where(chosen.chosen, first)
        for each, new in zip(known, (positions, chosen.scores), strict=True):
            each[slots] = new.where(chosen.chosen, each[slots])

    def save(self, chosen: Chosen, held: torch.Tensor) -> None:
        """Remembers K and V that the pairs will overwrite; held: int64 [T], tokens in the row's
        lists whose K and V may be wanted again.
        """
        slots = self._slots(chosen)[chosen.slots < held[chosen.rows]]
        if len(slots):
            self.cache.save(self.layout, slots.unique())  # type: ignore[no-untyped-call]

    def attend(
        self, chosen: Chosen, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Writes k, v [N, d] and returns the attention output of q [N, d], float32 [N, dv]."""
        if not len(chosen.rows):
            return torch.empty(v.shape)
        rows = (q[:, None], k[:, None], v[:, None])
        slots, keys = self._slots(chosen), self._keys(chosen)
        layout, pages = self.layout, self.cache.single
        if not self.grow and not isinstance(chosen, EveryPair):
            turns = attend_turns(layout, rows, pages, keys, slots, chosen.replaces, scale)
            return turns[:, 0]
        # No row takes the place of what another one reads.
        appended = slots if self.grow else slots.where(~chosen.replaces, -1)
        write_pages(layout, *pages, *rows[1:], appended)
        if not self.grow:
            write_pages(layout, *pages, *rows[1:], slots.where(chosen.replaces, -1), False)
        return attend(layout, rows[0], *pages, keys, scale, out_dtype=torch.float32)[0][:, 0]

    def _cells(
        self, rows: torch.Tensor, heads: torch.Tensor, every: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The lists, head * S + sequence, that these pairs use, in the pairs' order; and how many
        pairs use each.
        """
        if every:
            return heads * self.table.shape[0] + rows, torch.ones_like(rows)
        counts = torch.bincount(heads * self.table.shape[0] + self.sequence[rows])
        used = counts.nonzero()[:, 0]
        return used, counts[used]

    def _keys(self, chosen: Chosen) -> Keys:
        """What the pairs see: the first keys of their list, all of them past ones."""
        seqs = self.table.shape[0]
        cells, counts = self._cells(chosen.rows, chosen.heads, isinstance(chosen, EveryPair))
        bounds = torch.zeros(len(cells) + 1, dtype=torch.int32)
        bounds[1:] = counts.cumsum(0)
        pages = self.table[cells % seqs]
        table = pages * self.cache.scores.shape[1] + (cells // seqs).int()[:, None]
        hi = chosen.lengths.int()
        return Keys(bounds, self.positions[chosen.rows], table.where(pages >= 0, -1), hi=hi)

    def _slots(self, chosen: Chosen) -> torch.Tensor:
        """int64 [N]: where each pair's token is kept, in slots of pages of one head, or -1."""
        _, heads, size = self.cache.scores.shape
        pages = self.table[self.sequence[chosen.rows], chosen.slots // size].long()
        slots = (pages * heads + chosen.heads) * size + chosen.slots % size
        return slots.where(chosen.chosen, -1) if isinstance(chosen, EveryPair) else slots
