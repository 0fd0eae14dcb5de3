"""Page writes on a GPU where the CUDA kernel does not serve."""

from __future__ import annotations

import torch

from .. import gpu
from .. import triton_sizes as sizes
from .layout import PageLayout
from .rows import RowLayout

CLEARED = 64  # rows of a program that looks for first tokens: a chunk has one in every page


def supports(
    layout: PageLayout,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slots: torch.Tensor,
    clear: bool = True,
) -> str | None:
    """None when the kernels can serve this call, otherwise the reason."""
    if not isinstance(layout, RowLayout):
        return "pages have the CPU's layout"
    if any(each.numel() and each.stride(2) != each.shape[3] for each in (k_pages, v_pages)):
        return "the rows of a page are not contiguous"
    if not slots.is_contiguous():
        return "slots are not contiguous"
    return gpu.triton_refusal(k_pages, k, *([v_pages, v] if v.shape[2] else []))


def write_pages(
    layout: PageLayout,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slots: torch.Tensor,
    clear: bool = True,
) -> None:
    """See `saccade.kernels.store.write_pages`. Pages are cleared by a launch before the rows."""
    from .triton_kernel import clear_pages, put_rows

    rows, kv_heads, _ = k.shape
    if not rows or not kv_heads:
        return
    if clear and v.shape[2]:
        numbers = layout.page_size * v.shape[2]
        clear_pages[(-(-rows // CLEARED), kv_heads)](
            v_pages,
            slots,
            rows,
            v_pages.shape[0],
            *v_pages.stride()[:2],
            NUMBERS=numbers,
            PAGE=layout.page_size,
            BR=CLEARED,
            BN=min(sizes.power_of_two(numbers), 256),
            num_warps=4,
        )
    for pages, values in ((k_pages, k), (v_pages, v)):
        if values.shape[2]:
            width = sizes.power_of_two(values.shape[2])
            tile = sizes.rows_of(width)
            put_rows[(-(-rows // tile), kv_heads)](
                values,
                pages,
                slots,
                rows,
                pages.shape[0],
                *values.stride()[:2],
                *pages.stride()[:2],
                D=values.shape[2],
                BD=width,
                PAGE=layout.page_size,
                BR=tile,
                num_warps=4,
            )
