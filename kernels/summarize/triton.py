"""Block summaries on a GPU."""

from __future__ import annotations

import torch

from .. import gpu
from .. import triton_sizes as sizes
from ..store import PageLayout
from .blocks import CompletedBlocks

RUN = 32  # tokens added at a time: 128 channels of them are 32 numbers for each of 128 threads


def supports(
    layout: PageLayout, k_pages: torch.Tensor, means: torch.Tensor, done: CompletedBlocks
) -> str | None:
    """None when the kernel can serve this call, otherwise the reason."""
    return _refusal(layout, means, k_pages)


def supports_windows(
    layout: PageLayout,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    means: torch.Tensor,
    done: CompletedBlocks,
) -> str | None:
    """None when the kernel can serve this call, otherwise the reason."""
    return _refusal(layout, means, k_pages, *([v_pages] if v_pages.shape[3:] > (0,) else []))


def _refusal(layout: PageLayout, means: torch.Tensor, *pages: torch.Tensor) -> str | None:
    if reason := layout.triton_refusal(*pages):
        return reason
    if not means.is_contiguous():
        return "means are not contiguous"
    return gpu.triton_refusal(means, *pages)


def block_means(
    layout: PageLayout, k_pages: torch.Tensor, means: torch.Tensor, done: CompletedBlocks
) -> None:
    """See `saccade.kernels.summarize.block_means`."""
    _mean(layout, k_pages, means, done, 0)


def window_means(
    layout: PageLayout,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    means: torch.Tensor,
    done: CompletedBlocks,
) -> None:
    """See `saccade.kernels.summarize.window_means`."""
    _mean(layout, k_pages, means, done, 0)
    if means.shape[3] > k_pages.shape[3]:
        _mean(layout, v_pages, means, done, k_pages.shape[3])


def _mean(
    layout: PageLayout,
    pages: torch.Tensor,
    means: torch.Tensor,
    done: CompletedBlocks,
    first_channel: int,
) -> None:
    from .triton_kernel import mean_rows

    dim = pages.shape[3]
    mean_rows[(done.home.shape[0], pages.shape[1])](
        pages,
        means,
        done.members.contiguous(),
        done.begin.contiguous(),
        done.home.contiguous(),
        *pages.stride()[:2],
        done.members.shape[1],
        pages.shape[1],
        means.shape[3],
        first_channel,
        D=dim,
        BD=sizes.power_of_two(dim),
        BLOCK=done.block,
        PAGE=layout.page_size,
        BN=RUN,
        num_warps=4,
    )
