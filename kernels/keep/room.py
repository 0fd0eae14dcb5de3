"""The rows of a step, and how long the lists of the heads may be at each of them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch


@dataclass(frozen=True)
class ListRoom:
    """Every head of every sequence keeps a list of tokens.

    cu_rows: int32 [S + 1], rows of sequence s are cu_rows[s] .. cu_rows[s + 1]; positions: int64
    [T], ascending by 1 within a sequence. before, after: int32 [T], the greatest length of a list
    before a row and with it; they grow by 0 or 1. first: the token at position 0 is always kept.
    """

    cu_rows: torch.Tensor
    positions: torch.Tensor
    before: torch.Tensor
    after: torch.Tensor
    first: bool

    @property
    def sequences(self) -> list[tuple[int, int]]:
        """The rows [begin, end) of every sequence."""
        return list(pairwise(self.cu_rows.tolist()))


@dataclass(frozen=True)
class KeptState:
    """What lists remember of their tokens, in pages.

    scores: float32 [pages, E, page size]; positions: int32 of the same shape; table: int32 [S, max
    pages], page ids in order of the room.
    """

    scores: torch.Tensor
    positions: torch.Tensor
    table: torch.Tensor


@dataclass(frozen=True)
class KeptCounts:
    """How long lists that only grow are, in the pages of the text's own tokens.

    flags: uint8 [pages, page size, E], 1 where a head keeps the token; lengths: int32 [pages, E],
    of each list before the page; table: int32 [S, max pages], page ids by position.
    """

    flags: torch.Tensor
    lengths: torch.Tensor
    table: torch.Tensor
