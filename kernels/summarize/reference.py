"""Block summaries in plain torch."""

from __future__ import annotations

import torch

from ..store import PageLayout
from .blocks import CompletedBlocks, slots_per_page


def block_means(
    layout: PageLayout, k_pages: torch.Tensor, means: torch.Tensor, done: CompletedBlocks
) -> None:
    """See `saccade.kernels.summarize.block_means`."""
    slots = slots_per_page(done.block, layout.page_size)
    flat = means.flatten(0, 1)
    for members, home in zip(done.members, done.home.tolist(), strict=True):
        keys = layout.gather_keys(k_pages, members)
        begin = home % slots * done.block
        flat[home] = keys[begin : begin + done.block].float().mean(0).to(means.dtype)
