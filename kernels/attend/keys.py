"""Which keys each query row may see: the argument types of `attend`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch

from .. import gpu


@dataclass(frozen=True)
class BlockLists:
    """Explicit blocks of keys: the list type that every sparse method produces and every kernel
    accepts.

    ids: int32 [lists, owners, n], ascending block ids, each once, padded with -1. Block b holds the
    absolute positions [b * block, (b + 1) * block). owners is the number of query heads, or of KV
    heads (then a GQA group shares a list). list_of_row: int32 [T], the list that each query row
    uses (rows of a tile may share one); None: every row has a list of its own, in the order of the
    rows. scattered: rows share little of what they list, as those of decode steps do; the CPU then
    reads them row by row, as it does blocks of fewer than 16 positions in any case. Where it does,
    the bits of a result also depend on n, which says from where on, and positions ascend.
    """

    ids: torch.Tensor
    list_of_row: torch.Tensor | None
    block: int
    scattered: bool = False


def fault_of_rows(
    cu_rows: torch.Tensor, positions: torch.Tensor, page_table: torch.Tensor
) -> str | None:
    """What is wrong with rows and pages, None: nothing. See `Keys`."""
    rows = positions.shape
    if cu_rows.dtype != torch.int32 or page_table.dtype != torch.int32:
        return "cu_rows and page_table must be int32"
    if positions.dtype != torch.int64 or len(rows) != 1:
        return f"positions must be int64 {list(rows)}"
    shapes = tuple(page_table.shape), tuple(cu_rows.shape)
    if len(shapes[0]) != 2 or shapes[1] != (shapes[0][0] + 1,):
        return (
            "page_table must be [S, max pages] and cu_rows [S + 1], "
            f"got {shapes[0]} and {shapes[1]}"
        )
    if gpu.serves(cu_rows):  # to look at the bounds costs nothing in CPU memory alone
        return None
    bounds = cu_rows.tolist()
    if bounds[0] == 0 and bounds[-1] == rows[0] and bounds == sorted(bounds):
        return None
    return f"cu_rows must ascend from 0 to {rows[0]}, got {bounds[:8]}"


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

    def within(self, blocks: BlockLists) -> Keys:
        """The same keys, as far as a row's list holds them: what is known of them still holds."""
        keys = replace(self, blocks=blocks)
        keys.__dict__["fault"] = self.fault
        return keys

    @cached_property
    def fault(self) -> str | None:
        """What is wrong with everything but the blocks, None: nothing. Looked at once, however many
        layers share the keys.
        """
        rows = self.positions.shape
        if (fault := fault_of_rows(self.cu_rows, self.positions, self.page_table)) is not None:
            return fault
        for name, bound in (("lo", self.lo), ("hi", self.hi)):
            if bound is not None and (bound.dtype != torch.int32 or bound.shape != rows):
                return f"{name} must be int32 [{rows[0]}]"
        if (self.window is not None and self.window < 1) or self.sinks < 0:
            return f"window {self.window} must be positive and sinks {self.sinks} not negative"
        return None
