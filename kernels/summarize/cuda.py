"""Block summaries by the CUDA kernel."""

from __future__ import annotations

import torch

from .. import cuda_native
from ..store import PageLayout, RowLayout
from .blocks import CompletedBlocks

THREADS, SHARED = 256, 8 * 128 * 4  # eight stripes of sums of 128 channels


def supports(
    layout: PageLayout, k_pages: torch.Tensor, means: torch.Tensor, done: CompletedBlocks
) -> str | None:
    """None when the kernel can serve this call, otherwise the reason."""
    if not isinstance(layout, RowLayout):
        return "pages have the CPU's layout"
    return cuda_native.unsupported(k_pages, means) or _refusal(k_pages, means, done)


def block_means(
    layout: PageLayout, k_pages: torch.Tensor, means: torch.Tensor, done: CompletedBlocks
) -> None:
    """See `saccade.kernels.summarize.block_means`."""
    _means(layout, k_pages, means, done, 0)


def supports_windows(
    layout: PageLayout,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    means: torch.Tensor,
    done: CompletedBlocks,
) -> str | None:
    """None when the kernel can serve this call, otherwise the reason."""
    if not isinstance(layout, RowLayout):
        return "pages have the CPU's layout"
    reason = cuda_native.unsupported(k_pages, v_pages, means)
    return reason or _refusal(k_pages, means, done) or _refusal(v_pages, means, done)


def window_means(
    layout: PageLayout,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    means: torch.Tensor,
    done: CompletedBlocks,
) -> None:
    """See `saccade.kernels.summarize.window_means`."""
    _means(layout, k_pages, means, done, 0)
    if means.shape[-1] > k_pages.shape[-1]:
        _means(layout, v_pages, means, done, k_pages.shape[-1])


def _refusal(pages: torch.Tensor, means: torch.Tensor, done: CompletedBlocks) -> str | None:
    if not pages[:1].is_contiguous():
        return "the heads of a page are not contiguous"
    if not means.is_contiguous():
        return "means are not contiguous"
    return cuda_native.elsewhere(pages, done.members, done.home, done.begin)


def _means(
    layout: PageLayout, pages: torch.Tensor, means: torch.Tensor, done: CompletedBlocks, offset: int
) -> None:
    """Means of the channels of `pages`, written from channel `offset` on."""
    kv_heads, dim = pages.shape[1], pages.shape[3]
    fields = {
        "count": done.home.numel(),
        "kv_heads": kv_heads,
        "dim": dim,
        "page": layout.page_size,
        "pages": pages.shape[0],
        "block": done.block,
        "spread": done.members.shape[1],
        "source": pages.data_ptr(),
        "source_page": pages.stride(0),
        "members": done.members.data_ptr(),
        "home": done.home.data_ptr(),
        "begin": done.begin.data_ptr(),
        "homes": means.shape[0] * means.shape[1],
        "means": means.data_ptr(),
        "width": means.shape[3],
        "offset": offset,
    }
    name = f"saccade_means_{cuda_native.TYPES[pages.dtype]}"
    grid = (done.home.numel(), kv_heads, 1)
    cuda_native.launch(name, grid, THREADS, SHARED, pages.device, fields)
