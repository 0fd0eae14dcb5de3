"""Summaries of complete blocks and windows of keys, kept as page fields."""

from __future__ import annotations

import torch

from ..ops import Implementation, Op
from ..store import PageLayout
from . import cpu, reference
from .blocks import CompletedBlocks, completed_blocks, slots_per_page

__all__ = ["BLOCK_MEANS", "CompletedBlocks", "block_means", "completed_blocks", "slots_per_page"]

BLOCK_MEANS = Op(
    "block_means", reference.block_means, (Implementation("cpu", cpu.block_means, cpu.supports),)
)


def block_means(
    layout: PageLayout, k_pages: torch.Tensor, means: torch.Tensor, done: CompletedBlocks
) -> None:
    """Writes the mean key of every block or window in `done` to the page of its last token.

    means: [pages, slots, Hkv, d] of the keys' dtype. Computed from the pages in a fixed order, in
    fp32, and rounded once, so that it is the same however the prompt was cut. Raises ValueError
    when shapes or dtypes disagree.
    """
    slots = slots_per_page(done.stride, layout.page_size)
    head_dim = k_pages.shape[2] * k_pages.shape[4]
    want = (k_pages.shape[0], slots, k_pages.shape[1], head_dim)
    if means.shape != want or means.dtype != k_pages.dtype:
        raise ValueError(
            f"block_means: means must be {k_pages.dtype} {want}, "
            f"got {means.dtype} {tuple(means.shape)}"
        )
    if done.home.shape[0]:  # most decode steps complete none
        BLOCK_MEANS(layout, k_pages, means, done)
