"""Which blocks a step completes, and where their summaries live."""

from __future__ import annotations

from dataclasses import dataclass

import torch


def slots_per_page(block: int, page_size: int) -> int:
    """Summaries per page; one where a block spans several pages. ValueError unless they nest."""
    if block < 16 or (block % page_size and page_size % block):
        raise ValueError(
            f"a block of {block} tokens must be at least 16 and divide or be divided by the page "
            f"size of {page_size}"
        )
    return max(1, page_size // block)


@dataclass(frozen=True)
class CompletedBlocks:
    """Blocks whose last token is written in this step.

    members: int64 [n, pages per block], the pages of each block by position; home: int64 [n], the
    place of its summary: page id of the block's last token * slots per page + slot.
    """

    block: int
    members: torch.Tensor
    home: torch.Tensor


def completed_blocks(
    cu_rows: torch.Tensor,
    positions: torch.Tensor,
    page_table: torch.Tensor,
    block: int,
    page_size: int,
) -> CompletedBlocks:
    """The blocks that end at one of these rows; arguments as in `attend.Keys`."""
    slots, spread = slots_per_page(block, page_size), max(1, block // page_size)
    rows = torch.nonzero((positions + 1) % block == 0).flatten()
    sequence = torch.searchsorted(cu_rows.long(), rows, right=True) - 1
    last = positions[rows]
    pages = (last // page_size)[:, None] - torch.arange(spread - 1, -1, -1)
    members = page_table[sequence[:, None], pages].long()
    slot = last % page_size // block if slots > 1 else torch.zeros_like(last)
    return CompletedBlocks(block, members.contiguous(), members[:, -1] * slots + slot)
