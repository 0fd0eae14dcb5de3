"""Which keys each query row may see: the argument types of `attend`."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class BlockLists:
    """Explicit blocks of keys: the list type that every sparse method produces and every kernel
    accepts.

    ids: int32 [lists, owners, n], ascending block ids, padded with -1. Block b holds the absolute
    positions [b * block, (b + 1) * block). owners is the number of query heads, or of KV heads
    (then a GQA group shares a list). list_of_row: int32 [T], the list that each query row uses
    (rows of a tile may share one); None: every row has a list of its own, in the order of the rows.
    """

    ids: torch.Tensor
    list_of_row: torch.Tensor | None
    block: int


@dataclass(frozen=True)
class Keys:
    """Where the keys lie and which of them each row sees; all positions are absolute.

    cu_rows: int32 [S+1], rows of sequence s are cu_rows[s] .. cu_rows[s+1]; positions: int64 [T].
    page_table: int32 [S, max pages], page ids in order of position (-1: evicted, must not be
    visible). Row i sees key j when lo[i] <= j < hi[i] (default 0 and positions[i] + 1), and, with a
    window, when also positions[i] - j < window or j < sinks, and, with blocks, when its list holds
    the block of j. lo, hi: int32 [T] or None.
    spans: what is known of the positions in host memory: each sequence's rows stand at consecutive
    positions, (first, one past the last); None: nothing is.
    """

    cu_rows: torch.Tensor
    positions: torch.Tensor
    page_table: torch.Tensor
    lo: torch.Tensor | None = None
    hi: torch.Tensor | None = None
    window: int | None = None
    sinks: int = 0
    blocks: BlockLists | None = None
    spans: tuple[tuple[int, int], ...] | None = None
