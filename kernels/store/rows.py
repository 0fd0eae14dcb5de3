"""The GPU layout: a page of one KV head is a table of rows, one per token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from .layout import PageLayout
from .memory import zeroed


@dataclass(frozen=True)
class RowLayout(PageLayout):
    """k_pages: [pages, Hkv, page_size, d]; v_pages: [pages, Hkv, page_size, dv].

    What a GPU kernel reads of one head in a page is then one contiguous box: one bulk copy, and
    long DRAM bursts.
    """

    splits_fields: ClassVar[bool] = False

    @staticmethod
    def unit(dtype: torch.dtype) -> int:
        """Elements of the summed index lie in order: no pairs."""
        return 1

    def cpu_refusal(self, *pages: torch.Tensor) -> str | None:
        """The compiled CPU kernels read panels."""
        return "pages have the GPU's layout"

    def triton_refusal(self, *pages: torch.Tensor) -> str | None:
        """The rows of a page must lie one behind the other."""
        if any(each.numel() and each.stride(2) != each.shape[3] for each in pages):
            return "the rows of a page are not contiguous"
        return None

    def shapes(
        self, pages: int, kv_heads: int, head_dim: int, v_head_dim: int, dtype: torch.dtype
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shapes of K and of V pages."""
        page = (pages, kv_heads, self.page_size)
        return (*page, head_dim), (*page, v_head_dim)

    def allocate(
        self,
        pages: int,
        kv_heads: int,
        head_dim: int,
        v_head_dim: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Zeroed K and V pages, the heads of a page side by side."""
        k, v = self.shapes(pages, kv_heads, head_dim, v_head_dim, dtype)
        return zeroed(k, dtype, device), zeroed(v, dtype, device)

    def dims(self, k_pages: torch.Tensor, v_pages: torch.Tensor) -> tuple[int, int]:
        """(head_dim, v_head_dim) of these pages. Raises ValueError when they do not have this
        layout.
        """
        k, v = tuple(k_pages.shape), tuple(v_pages.shape)
        if not (len(k) == len(v) == 4 and k[:3] == v[:3] and k[2] == self.page_size):
            raise ValueError(f"pages {k}, {v} do not have {self} for {k_pages.dtype}")
        return k[3], v[3]

    @staticmethod
    def key_dim(k_pages: torch.Tensor) -> int:
        """head_dim of these pages of K."""
        return k_pages.shape[3]

    def put(
        self,
        k_pages: torch.Tensor,
        v_pages: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        slots: torch.Tensor,
    ) -> None:
        """Writes k [n, Hkv, d] and v [n, Hkv, dv] to slots int64 [n], all of them valid."""
        page, at = slots // self.page_size, slots % self.page_size
        k_pages[page, :, at] = k
        v_pages[page, :, at] = v

    def gather(
        self, k_pages: torch.Tensor, v_pages: torch.Tensor, page_ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """K [n * page_size, Hkv, d] and V [n * page_size, Hkv, dv] of n pages, in order of
        position.
        """
        return self.gather_keys(k_pages, page_ids), self.gather_keys(v_pages, page_ids)

    def gather_tokens(
        self, k_pages: torch.Tensor, v_pages: torch.Tensor, page_ids: torch.Tensor, at: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """K [..., Hkv, d] and V [..., Hkv, dv] of tokens: int64 [...] page ids and offsets."""
        return k_pages[page_ids, :, at], v_pages[page_ids, :, at]

    @staticmethod
    def gather_keys(k_pages: torch.Tensor, page_ids: torch.Tensor) -> torch.Tensor:
        """K [n * page_size, Hkv, d] of n pages, in order of position."""
        return k_pages[page_ids].transpose(1, 2).flatten(0, 1)
