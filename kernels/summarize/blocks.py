"""Which blocks or windows a step completes, and where their summaries live."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch


def slots_per_page(block: int, page_size: int, least: int = 16) -> int:
    """Summaries per page; one where a block spans several pages. ValueError unless they nest."""
    if block < least or (block % page_size and page_size % block):
        raise ValueError(
            f"a block of {block} tokens must be at least {least} and divide or be divided by the "
            f"page size of {page_size}"
        )
    return max(1, page_size // block)


@dataclass(frozen=True)
class CompletedBlocks:
    """Blocks, or windows, whose last token is written in this step.

    Window i holds `block` tokens from i * stride on; blocks are windows side by side.
    members: int64 [n, pages], the pages of each by position; begin: int64 [n], where its first key
    lies in the first of them; home: int64 [n], the place of its summary: page id of the last token
    * slots per page + slot.
    """

    block: int
    members: torch.Tensor
    home: torch.Tensor
    begin: torch.Tensor
    stride: int

    @property
    def fault(self) -> str | None:
        """What is wrong with the tensors, None: nothing. Kernels leave out what has no place."""
        count = self.home.shape
        if len(count) != 1 or self.begin.shape != count or self.members.shape[:1] != count:
            return "home and begin must be [n], members [n, pages]"
        for name in ("members", "home", "begin"):
            tensor = getattr(self, name)
            if tensor.dtype != torch.int64 or not tensor.is_contiguous():
                return f"{name} must be int64, contiguous"
        return None


def completed_blocks(
    cu_rows: torch.Tensor,
    positions: torch.Tensor,
    page_table: torch.Tensor,
    block: int,
    page_size: int,
    stride: int | None = None,
) -> CompletedBlocks:
    """The blocks that end at one of these rows; arguments as in `attend.Keys`.

    stride: of windows, which divides their size, and may be less than the 16 tokens that a block
    has at least; blocks do not overlap. What has lost a page is left out. ValueError for sizes that
    do not nest.
    """
    slots = slots_per_page(stride or block, page_size, least=1 if stride else 16)
    stride = stride or block
    if block % stride:
        raise ValueError(f"windows of {block} tokens must be a multiple of their stride {stride}")
    # The most pages that one touches: the latest that a window may begin in its page is
    # page_size - stride.
    spread = (page_size - min(stride, page_size) + block - 1) // page_size + 1
    # In NumPy, whose calls take a fraction of torch's where a step has few rows.
    ends = positions.numpy() + 1
    rows = np.flatnonzero((ends % stride == 0) & (ends >= block))
    if not len(rows):  # as in most decode steps
        none = torch.empty(0, dtype=torch.int64)
        return CompletedBlocks(block, none.view(0, spread), none, none, stride)
    table = page_table.numpy()
    sequence = np.searchsorted(cu_rows.numpy(), rows, side="right") - 1
    first, last = ends[rows] - block, ends[rows] - 1
    pages = (first // page_size)[:, None] + np.arange(spread)
    members = table[sequence[:, None], np.minimum(pages, (last // page_size)[:, None])]
    home = table[sequence, last // page_size].astype(np.int64) * slots
    if slots > 1:
        home += last % page_size // stride
    kept = (members >= 0).all(axis=1)
    arrays = (members[kept].astype(np.int64), home[kept], first[kept] % page_size)
    members, home, begin = map(torch.from_numpy, arrays)
    return CompletedBlocks(block, members, home, begin, stride)
