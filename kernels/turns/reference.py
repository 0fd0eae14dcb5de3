"""Attention in turns: all rows whose keys may be written together attend together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import torch

from ..attend import attend
from ..store import write_pages
from .call import TurnsCall


def attend_turns(call: TurnsCall) -> torch.Tensor:
    """See `saccade.kernels.turns.attend_turns`."""
    layout, (q, k, v), pages, keys, slots, replaces, scale = call
    out = torch.empty(v.shape, dtype=torch.float32)
    sequence = torch.repeat_interleave(torch.arange(len(keys.page_table)), keys.cu_rows.diff())
    for turn in _turns(sequence, replaces):
        # A page that begins with a token is cleared, unless the token replaces another.
        for part, clear in ((turn[~replaces[turn]], True), (turn[replaces[turn]], False)):
            if len(part):
                write_pages(layout, *pages, k[part], v[part], slots[part], clear)
        counts = torch.bincount(sequence[turn], minlength=len(keys.page_table))
        some = replace(
            keys,
            cu_rows=torch.nn.functional.pad(counts.cumsum(0), (1, 0)).int(),
            positions=keys.positions[turn],
            hi=None if keys.hi is None else keys.hi[turn],
        )
        out[turn] = attend(layout, q[turn], *pages, some, scale, out_dtype=out.dtype)[0]
    return out


def _turns(sequence: torch.Tensor, replaces: torch.Tensor) -> Iterator[torch.Tensor]:
    """Which rows go together, in order, int64 [n] each: a turn begins where a row replaces."""
    done = replaces.cumsum(0)
    first = torch.searchsorted(sequence, sequence)  # of the row's sequence
    turn_of = done - (done - replaces.long())[first]
    order, ends = turn_of.argsort(stable=True), turn_of.bincount().cumsum(0).tolist()
    for begin, end in pairwise([0, *ends]):
        if begin < end:
            yield order[begin:end]
