"""Summaries of complete blocks and windows of keys, kept as page fields."""

from __future__ import annotations

import torch

from ..ops import Implementation, Op
from ..store import PageLayout
from . import cpu, cuda, reference, triton
from .blocks import CompletedBlocks, completed_blocks, slots_per_page

__all__ = [
    "BLOCK_MEANS",
    "WINDOW_MEANS",
    "CompletedBlocks",
    "block_means",
    "completed_blocks",
    "slots_per_page",
    "window_means",
]

BLOCK_MEANS = Op(
    "block_means",
    reference.block_means,
    (
        Implementation("cpu", cpu.block_means, cpu.supports),
        Implementation("cuda", cuda.block_means, cuda.supports),
        Implementation("triton", triton.block_means, triton.supports),
    ),
)
WINDOW_MEANS = Op(
    "window_means",
    reference.window_means,
    (
        Implementation("cpu", cpu.window_means, cpu.supports_windows),
        Implementation("cuda", cuda.window_means, cuda.supports_windows),
        Implementation("triton", triton.window_means, triton.supports_windows),
    ),
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
    head_dim = layout.key_dim(k_pages)
    want = (k_pages.shape[0], slots, k_pages.shape[1], head_dim)
    if means.shape != want or means.dtype != k_pages.dtype:
        raise ValueError(
            f"block_means: means must be {k_pages.dtype} {want}, "
            f"got {means.dtype} {tuple(means.shape)}"
        )
    if done.home.shape[0]:  # most decode steps complete none
        if (fault := done.fault) is not None:
            raise ValueError(f"block_means: {fault}")
        BLOCK_MEANS(layout, k_pages, means, done)


def window_means(
    layout: PageLayout,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    means: torch.Tensor,
    done: CompletedBlocks,
) -> None:
    """Writes the mean key of every window in `done`, and behind it its mean value, to the page of
    the window's last token.

    means: [pages, slots, Hkv, d + dv] of the keys' dtype, or [pages, slots, Hkv, d], which takes no
    values. Unlike in `block_means`, windows may begin at any token, and pages may hold more heads
    than these (see `attend`). In fp32 and a fixed order, rounded once. Raises ValueError when
    shapes or dtypes disagree.
    """
    slots = slots_per_page(done.stride, layout.page_size, least=1)
    dim, v_dim = layout.dims(k_pages, v_pages)
    found, heads = tuple(means.shape), (k_pages.shape[0], slots, k_pages.shape[1])
    if found not in ((*heads, dim), (*heads, dim + v_dim)) or means.dtype != k_pages.dtype:
        raise ValueError(
            f"window_means: means must be {k_pages.dtype} {(*heads, dim + v_dim)} or {dim} "
            f"channels wide, got {means.dtype} {found}"
        )
    if done.home.shape[0]:  # most decode steps complete none
        if (fault := done.fault) is not None:
            raise ValueError(f"window_means: {fault}")
        WINDOW_MEANS(layout, k_pages, v_pages, means, done)
