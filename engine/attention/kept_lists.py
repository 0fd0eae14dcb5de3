"""The lists of expert-choice heads as the kernels see them: every head of every sequence is a
sequence of one head, over pages of one head.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch

from ...kernels.attend import Keys, attend
from ...kernels.store import PageLayout, write_pages
from .experts import Chosen, KeptCache


@dataclass(frozen=True)
class KeptLists:
    """The lists of one layer in one step.

    table: int32 [S, max pages], pages of kept tokens. sequence: int64 [T], of each row. positions:
    int64 [T].
    """

    layout: PageLayout
    cache: KeptCache
    table: torch.Tensor
    sequence: torch.Tensor
    positions: torch.Tensor

    def note(self, chosen: Chosen) -> None:
        """Positions and scores of chosen tokens."""
        slots = self._slots(chosen)
        self.cache.positions.view(-1)[slots] = self.positions[chosen.rows].int()
        self.cache.scores.view(-1)[slots] = chosen.scores

    def attend(
        self, chosen: Chosen, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Writes k, v [N, d] and returns the attention output of q [N, d], float32 [N, dv]."""
        slots = self._slots(chosen)
        k_pages, v_pages = (
            pages.view(-1, 1, *pages.shape[2:]) for pages in (self.cache.k, self.cache.v)
        )
        out = torch.empty(v.shape)
        for turn in self._turns(chosen):
            self._write(chosen, turn, slots, k, v, k_pages, v_pages)
            keys = self._keys(chosen, turn)
            out[turn] = attend(
                self.layout, q[turn, None], k_pages, v_pages, keys, scale, out_dtype=out.dtype
            )[0][:, 0]
        return out

    def _write(
        self,
        chosen: Chosen,
        turn: torch.Tensor,
        slots: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        k_pages: torch.Tensor,
        v_pages: torch.Tensor,
    ) -> None:
        """A page that begins with a token is cleared, unless the token replaces another."""
        replaces = chosen.replaces[turn]
        for part, clear in ((turn[~replaces], True), (turn[replaces], False)):
            if len(part):
                write_pages(
                    self.layout,
                    k_pages,
                    v_pages,
                    k[part, None],
                    v[part, None],
                    slots[part],
                    clear,
                )

    def _turns(self, chosen: Chosen) -> Iterator[torch.Tensor]:
        """The pairs that can be written and attend together, in order: int64 [n] each.

        A token that replaces another is written when the rows before it have attended.
        """
        if not chosen.replaces.any():
            if len(chosen.rows):
                yield torch.arange(len(chosen.rows))
            return
        _, counts = self._cells(chosen.rows, chosen.heads)
        done = chosen.replaces.cumsum(0)
        begins = counts.cumsum(0) - counts
        before = (done - chosen.replaces.long())[begins]
        turn_of = done - before.repeat_interleave(counts)
        order, ends = turn_of.argsort(stable=True), turn_of.bincount().cumsum(0).tolist()
        for begin, end in pairwise([0, *ends]):
            if begin < end:
                yield order[begin:end]

    def _cells(self, rows: torch.Tensor, heads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The lists, head * S + sequence, that these pairs use, in the pairs' order; and how many
        pairs use each.
        """
        counts = torch.bincount(heads * self.table.shape[0] + self.sequence[rows])
        used = counts.nonzero()[:, 0]
        return used, counts[used]

    def _keys(self, chosen: Chosen, turn: torch.Tensor) -> Keys:
        """What the pairs of a turn see: the first keys of their list, all of them past ones."""
        rows, seqs = chosen.rows[turn], self.table.shape[0]
        cells, counts = self._cells(rows, chosen.heads[turn])
        bounds = torch.zeros(len(cells) + 1, dtype=torch.int32)
        bounds[1:] = counts.cumsum(0)
        pages = self.table[cells % seqs]
        table = pages * self.cache.scores.shape[1] + (cells // seqs).int()[:, None]
        hi = chosen.lengths[turn].int()
        return Keys(bounds, self.positions[rows], table.where(pages >= 0, -1), hi=hi)

    def _slots(self, chosen: Chosen) -> torch.Tensor:
        """int64 [N]: where each pair's token is kept, in slots of pages of one head."""
        _, heads, size = self.cache.scores.shape
        pages = self.table[self.sequence[chosen.rows], chosen.slots // size].long()
        return (pages * heads + chosen.heads) * size + chosen.slots % size
