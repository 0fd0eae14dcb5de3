"""Where the summaries that a row may choose from lie."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from ..attend.keys import Keys, fault_of_rows


@dataclass(frozen=True)
class Candidates:
    """Rows and pages as in `attend.Keys`; blocks of `block` tokens, pages of `page_size`."""

    cu_rows: torch.Tensor
    positions: torch.Tensor
    page_table: torch.Tensor
    block: int
    page_size: int

    @classmethod
    def of(cls, keys: Keys, block: int, page_size: int) -> Candidates:
        """For the rows of these keys: what is known of them still holds."""
        made = cls(keys.cu_rows, keys.positions, keys.page_table, block, page_size)
        made.__dict__["fault"] = made._fault_of_form or keys.fault
        return made

    @cached_property
    def fault(self) -> str | None:
        """What is wrong with them, None: nothing. Looked at once, however many layers ask."""
        rows = self.cu_rows, self.positions, self.page_table
        return self._fault_of_form or fault_of_rows(*rows)

    @property
    def _fault_of_form(self) -> str | None:
        if self.block < 1 or self.page_size < 1:
            return f"block {self.block} and page size {self.page_size} must be positive"
        for name in ("cu_rows", "positions", "page_table"):
            if not getattr(self, name).is_contiguous():
                return f"{name} must be contiguous"
        return None

    @property
    def blocks(self) -> int:
        """The most blocks that a row may have in these pages, its own among them."""
        return -(-self.page_table.shape[1] * self.page_size // self.block)
