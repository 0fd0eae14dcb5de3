"""How K and V lie inside a page. Nobody outside this folder and the compiled kernels indexes page memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class PageLayout:
    """The CPU layout: K by token, V transposed, so that both products stream pages without repacking.

    k_pages: [pages, Hkv, page_size, d]; v_pages: [pages, Hkv, dv, page_size].
    """

    page_size: int = 64

    def __post_init__(self) -> None:
        if self.page_size < 16 or self.page_size > 256 or self.page_size & (self.page_size - 1):
            raise ValueError(f"page_size must be 16, 32, 64, 128 or 256, not {self.page_size}")

    def allocate(
        self, pages: int, kv_heads: int, head_dim: int, v_head_dim: int, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Zeroed K and V pages; the operating system commits the memory when it is first written."""
        return (
            torch.zeros((pages, kv_heads, self.page_size, head_dim), dtype=dtype),
            torch.zeros((pages, kv_heads, v_head_dim, self.page_size), dtype=dtype),
        )

    def bytes_per_page(self, kv_heads: int, head_dim: int, v_head_dim: int, dtype: torch.dtype) -> int:
        """Bytes of one page of K and V."""
        return self.page_size * kv_heads * (head_dim + v_head_dim) * dtype.itemsize

    def gather(
        self, k_pages: torch.Tensor, v_pages: torch.Tensor, page_ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """K [n * page_size, Hkv, d] and V [n * page_size, Hkv, dv] of n pages, in order of position."""
        k = k_pages[page_ids].permute(0, 2, 1, 3).flatten(0, 1)
        v = v_pages[page_ids].permute(0, 3, 1, 2).flatten(0, 1)
        return k, v
