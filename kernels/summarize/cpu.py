"""Block summaries by the compiled CPU kernel."""

from __future__ import annotations

import torch

from .. import native
from ..store import PageLayout, field_refusal, field_steps
from .blocks import CompletedBlocks


def supports(
    layout: PageLayout, k_pages: torch.Tensor, means: torch.Tensor, done: CompletedBlocks
) -> str | None:
    """None when the kernel can serve this call, otherwise the reason."""
    if not means.is_contiguous():
        return "means are not contiguous"
    return layout.cpu_refusal(k_pages) or native.unsupported(k_pages, means)


def block_means(
    layout: PageLayout, k_pages: torch.Tensor, means: torch.Tensor, done: CompletedBlocks
) -> None:
    """See `saccade.kernels.summarize.block_means`."""
    pages, slots, kv_heads, dim = means.shape
    native.kernels().block_means(
        native.DTYPES[means.dtype],
        done.home.numel(),
        kv_heads,
        dim,
        layout.page_size,
        pages,
        done.block,
        slots,
        done.members.shape[1],
        *layout.steps(k_pages),
        k_pages.data_ptr(),
        done.members.data_ptr(),
        done.home.data_ptr(),
        done.begin.data_ptr(),
        means.data_ptr(),
    )


def supports_windows(
    layout: PageLayout,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    means: torch.Tensor,
    done: CompletedBlocks,
) -> str | None:
    """None when the kernel can serve this call, otherwise the reason."""
    if reason := field_refusal(means):
        return reason
    return layout.cpu_refusal(k_pages, v_pages) or native.unsupported(k_pages, v_pages, means)


def window_means(
    layout: PageLayout,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    means: torch.Tensor,
    done: CompletedBlocks,
) -> None:
    """See `saccade.kernels.summarize.window_means`."""
    pages, slots, kv_heads, width = means.shape
    dim, _ = layout.dims(k_pages, v_pages)
    native.kernels().window_means(
        native.DTYPES[means.dtype],
        done.home.numel(),
        kv_heads,
        dim,
        width - dim,
        layout.page_size,
        pages,
        done.block,
        slots,
        done.members.shape[1],
        *layout.steps(k_pages),
        k_pages.data_ptr(),
        v_pages.data_ptr(),
        done.members.data_ptr(),
        done.home.data_ptr(),
        done.begin.data_ptr(),
        means.data_ptr(),
        *field_steps(means),
    )
