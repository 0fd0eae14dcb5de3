"""Where the summaries that a row may choose from lie."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Candidates:
    """Rows and pages as in `attend.Keys`; blocks of `block` tokens, pages of `page_size`."""

    cu_rows: torch.Tensor
    positions: torch.Tensor
    page_table: torch.Tensor
    block: int
    page_size: int

    @property
    def blocks(self) -> int:
        """The most blocks that a row may have in these pages, its own among them."""
        return -(-self.page_table.shape[1] * self.page_size // self.block)
