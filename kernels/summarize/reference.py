"""Block summaries in plain torch."""

from __future__ import annotations

import torch

from ..store import PageLayout
from .blocks import CompletedBlocks


def block_means(
    layout: PageLayout, k_pages: torch.Tensor, means: torch.Tensor, done: CompletedBlocks
) -> None:
    """See `saccade.kernels.summarize.block_means`."""
    flat = means.flatten(0, 1)
    for members, home, begin in zip(
        done.members, done.home.tolist(), done.begin.tolist(), strict=True
    ):
        keys = layout.gather_keys(k_pages, members)
        flat[home] = keys[begin : begin + done.block].float().mean(0).to(means.dtype)


def window_means(
    layout: PageLayout,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    means: torch.Tensor,
    done: CompletedBlocks,
) -> None:
    """See `saccade.kernels.summarize.window_means`."""
    flat = means.flatten(0, 1)
    for members, home, begin in zip(
        done.members, done.home.tolist(), done.begin.tolist(), strict=True
    ):
        k, v = layout.gather(k_pages, v_pages, members)
        both = k if k.shape[-1] == flat.shape[-1] else torch.cat([k, v], dim=-1)
        flat[home] = both[begin : begin + done.block].float().mean(0).to(means.dtype)
