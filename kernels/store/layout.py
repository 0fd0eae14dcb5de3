"""How K and V lie inside a page. Nobody outside this folder and the compiled kernels indexes page
memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch

from .memory import zeroed

VALUE_TILE = 64  # as value_tile in csrc/include/saccade/params.h


@dataclass(frozen=True)
class PageLayout:
    """The CPU layout: panels whose vector lanes lie side by side, so that products stream pages
    without repacking.

    k_pages: [pages, Hkv, d / unit, page_size, unit], lanes are keys; v_pages: [pages, Hkv, dv /
    tile, page_size / unit, tile, unit], lanes are channels. unit is 2 for bf16 (the machine's
    dot-product pairs; d must be even) and 1 otherwise; tile is 64 channels where they divide dv,
    else dv: what one product reads then lies together.
    """

    page_size: int = 64
    splits_fields: ClassVar[bool] = True  # see `allocate_field`

    def __post_init__(self) -> None:
        if self.page_size not in (16, 32, 64, 128, 256):
            raise ValueError(f"page_size must be 16, 32, 64, 128 or 256, not {self.page_size}")

    @staticmethod
    def unit(dtype: torch.dtype) -> int:
        """Consecutive elements of the summed index that lie together."""
        return 2 if dtype == torch.bfloat16 else 1

    @staticmethod
    def tile(v_head_dim: int) -> int:
        """Channels of V that lie together."""
        return v_head_dim if v_head_dim % VALUE_TILE else VALUE_TILE

    def cpu_refusal(self, *pages: torch.Tensor) -> str | None:
        """Why the compiled CPU kernels cannot read these pages (K, or K and V); None: they can."""
        return _refusal(tuple((each.shape, each.stride()) for each in pages))

    def triton_refusal(self, *pages: torch.Tensor) -> str | None:
        """Why kernels in Triton cannot read these pages, which may be empty; None: they can."""
        return "pages have the CPU's layout"

    def shapes(
        self, pages: int, kv_heads: int, head_dim: int, v_head_dim: int, dtype: torch.dtype
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shapes of K and of V pages. Raises ValueError for an odd head_dim where it cannot be
        one.
        """
        unit, tile = self.unit(dtype), self.tile(v_head_dim)
        if head_dim % unit:
            raise ValueError(f"head_dim must be even for {dtype} pages, not {head_dim}")
        return (
            (pages, kv_heads, head_dim // unit, self.page_size, unit),
            (pages, kv_heads, v_head_dim // tile, self.page_size // unit, tile, unit),
        )

    def allocate(
        self,
        pages: int,
        kv_heads: int,
        head_dim: int,
        v_head_dim: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Zeroed K and V pages; the system commits host memory when it is first written.

        The pages of a head lie side by side: pages with ascending ids are then one stream, in which
        the processor reads ahead by itself. (See benchmarks/NOTES.md.)
        """
        k, v = self.shapes(pages, kv_heads, head_dim, v_head_dim, dtype)
        return (
            zeroed((kv_heads, pages, *k[2:]), dtype, device).transpose(0, 1),
            zeroed((kv_heads, pages, *v[2:]), dtype, device).transpose(0, 1),
        )

    def allocate_field(
        self,
        pages: int,
        shape: Sequence[int],
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        by_head: bool = False,
    ) -> torch.Tensor:
        """Zeroed [pages, *shape]. by_head: shape is [slots, KV heads, ...], and what pages keep of
        a head lies side by side, for kernels that read all slots of one head; not on a GPU.
        """
        if not (by_head and self.splits_fields):
            return zeroed((pages, *shape), dtype, device)
        slots, heads, *rest = shape
        return zeroed((heads, pages, slots, *rest), dtype, device).movedim(0, 2)

    def key_pages(self, flat: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A page field [pages, dim * page_size] as K pages of one head, and V pages of none."""
        k, v = self.shapes(flat.shape[0], 1, dim, 0, flat.dtype)
        return flat.view(k), flat.new_empty(v)

    def put(
        self,
        k_pages: torch.Tensor,
        v_pages: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        slots: torch.Tensor,
    ) -> None:
        """Writes k [n, Hkv, d] and v [n, Hkv, dv] to slots int64 [n], all of them valid."""
        unit, page, at = self.unit(k.dtype), slots // self.page_size, slots % self.page_size
        k_pages[page, :, :, at] = k.reshape(page.numel(), *k_pages.shape[1:3], unit)
        tiles = v.reshape(*v.shape[:2], v_pages.shape[2], v_pages.shape[4])
        v_pages[page, :, :, at // unit, :, at % unit] = tiles

    def bytes_per_page(
        self, kv_heads: int, head_dim: int, v_head_dim: int, dtype: torch.dtype
    ) -> int:
        """Bytes of one page of K and V."""
        return self.page_size * kv_heads * (head_dim + v_head_dim) * dtype.itemsize

    def dims(self, k_pages: torch.Tensor, v_pages: torch.Tensor) -> tuple[int, int]:
        """(head_dim, v_head_dim) of these pages. Raises ValueError when they do not have this
        layout.
        """
        found = _dims(self, k_pages.dtype, k_pages.shape, v_pages.shape)
        if found is None:
            raise ValueError(
                f"pages {tuple(k_pages.shape)}, {tuple(v_pages.shape)} do not have {self} "
                f"for {k_pages.dtype}"
            )
        return found

    @staticmethod
    def key_dim(k_pages: torch.Tensor) -> int:
        """head_dim of these pages of K."""
        return k_pages.shape[2] * k_pages.shape[4]

    @staticmethod
    def steps(pages: torch.Tensor) -> tuple[int, int]:
        """Panels from one page to the next of a head, and from one head to the next of a page."""
        panel = math.prod(pages.shape[2:])
        return pages.stride(0) // panel, pages.stride(1) // panel

    def gather(
        self, k_pages: torch.Tensor, v_pages: torch.Tensor, page_ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """K [n * page_size, Hkv, d] and V [n * page_size, Hkv, dv] of n pages, in order of
        position.
        """
        k = self.gather_keys(k_pages, page_ids)
        v = v_pages[page_ids].permute(0, 3, 5, 1, 2, 4).flatten(4).flatten(0, 2)
        return k, v

    def gather_tokens(
        self, k_pages: torch.Tensor, v_pages: torch.Tensor, page_ids: torch.Tensor, at: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """K [..., Hkv, d] and V [..., Hkv, dv] of tokens: int64 [...] page ids and offsets."""
        unit = self.unit(k_pages.dtype)
        k = k_pages[page_ids, :, :, at].flatten(-2)
        return k, v_pages[page_ids, :, :, at // unit, :, at % unit].flatten(-2)

    @staticmethod
    def gather_keys(k_pages: torch.Tensor, page_ids: torch.Tensor) -> torch.Tensor:
        """K [n * page_size, Hkv, d] of n pages, in order of position."""
        return k_pages[page_ids].permute(0, 3, 1, 2, 4).flatten(3).flatten(0, 1)


# Asked in every layer of every step, of the same few tensors.
@lru_cache(maxsize=256)
def _dims(
    layout: PageLayout, dtype: torch.dtype, k: tuple[int, ...], v: tuple[int, ...]
) -> tuple[int, int] | None:
    """(head_dim, v_head_dim) of K and V pages of these shapes; None: they are not of the layout."""
    unit = layout.unit(dtype)
    if not (
        (len(k), len(v)) == (5, 6)
        and k[:2] == v[:2]
        and k[3:] == (layout.page_size, unit)
        and v[3:] == (layout.page_size // unit, layout.tile(v[2] * v[4]), unit)
    ):
        return None
    return k[2] * unit, v[2] * v[4]


@lru_cache(maxsize=256)
def _refusal(pages: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]) -> str | None:
    """See `PageLayout.cpu_refusal`; shapes and strides."""
    steps = set()
    for shape, strides in pages:
        if not math.prod(shape):
            continue
        panel = 1
        for size, stride in zip(shape[:1:-1], strides[:1:-1], strict=True):
            if size != 1 and stride != panel:
                return "what a page holds of a head is not contiguous"
            panel *= size
        if strides[0] % panel or strides[1] % panel:
            return "what a page holds of a head is not contiguous"
        steps.add((strides[0] // panel, strides[1] // panel))
    return None if len(steps) < 2 else "pages of K and V do not lie alike"
