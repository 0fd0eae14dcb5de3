"""Bounds on the keys of complete blocks, kept as page fields, and the blocks they speak for."""

from __future__ import annotations

import torch

from ..compressed.lists import ListRule
from ..ops import Implementation, Op
from ..select import Candidates
from ..store import PageLayout
from ..summarize import CompletedBlocks, slots_per_page
from . import cpu, reference, triton

__all__ = ["KEY_BOUNDS", "REDUCTIONS", "SELECT_BOUNDED", "key_bounds", "select_bounded"]

REDUCTIONS = ("max", "sum")  # over the query heads of a KV head

KEY_BOUNDS = Op(
    "key_bounds",
    reference.key_bounds,
    (
        Implementation("cpu", cpu.key_bounds, cpu.supports),
        Implementation("triton", triton.key_bounds, triton.supports),
    ),
)
SELECT_BOUNDED = Op(
    "select_bounded",
    reference.select_bounded,
    (
        Implementation("cpu", cpu.select_bounded, cpu.selects),
        Implementation("triton", triton.select_bounded, triton.selects),
    ),
)


def key_bounds(
    layout: PageLayout, k_pages: torch.Tensor, bounds: torch.Tensor, done: CompletedBlocks
) -> None:
    """Writes the least and the greatest key, channel by channel, of every block in `done`.

    bounds: [pages, slots, Hkv, 2, d] of the keys' dtype, written in the page of the block's last
    token. They are keys' own numbers, so nothing is rounded; a NaN among them stays NaN. Raises
    ValueError when shapes or dtypes disagree.
    """
    slots = slots_per_page(done.block, layout.page_size)
    want = (k_pages.shape[0], slots, k_pages.shape[1], 2, layout.key_dim(k_pages))
    if bounds.shape != want or bounds.dtype != k_pages.dtype:
        raise ValueError(
            f"key_bounds: bounds must be {k_pages.dtype} {want}, "
            f"got {bounds.dtype} {tuple(bounds.shape)}"
        )
    if done.home.shape[0]:  # most decode steps complete none
        if (fault := done.fault) is not None:
            raise ValueError(f"key_bounds: {fault}")
        KEY_BOUNDS(layout, k_pages, bounds, done)


def select_bounded(
    q: torch.Tensor,
    bounds: torch.Tensor,
    candidates: Candidates,
    rule: ListRule,
    reduction: str = "max",
) -> torch.Tensor:
    """The blocks whose keys can score highest with a row: one list per row and KV head.

    A block's bound for one query head is the sum over channels of max(q * least, q * greatest),
    which no <q, key> of the block exceeds; for the KV head it is the max or the sum over its query
    heads. q: [T, H, d]; bounds: as `key_bounds` writes them, of q's dtype. Returns int32
    [T, Hkv, rule.listed], ascending, -1 padded; the row's own block is always among them. Equal
    bounds: the later block wins; NaN never does.
    Raises ValueError when shapes or dtypes disagree, or the reduction is unknown.
    """
    if q.ndim != 3 or bounds.ndim != 5 or q.shape[2] != bounds.shape[4] or bounds.shape[3] != 2:
        raise ValueError(
            f"select_bounded: q {tuple(q.shape)} and bounds {tuple(bounds.shape)} do not fit"
        )
    if q.dtype != bounds.dtype or q.shape[1] % bounds.shape[2]:
        raise ValueError(
            "select_bounded: q and bounds must share a dtype, heads be a multiple of KV heads"
        )
    if candidates.fault is not None:
        raise ValueError(f"select_bounded: {candidates.fault}")
    slots = slots_per_page(candidates.block, candidates.page_size)
    if candidates.positions.shape != q.shape[:1] or bounds.shape[1] != slots:
        raise ValueError(
            f"select_bounded: positions must be [{q.shape[0]}], bounds have {slots} slots a page"
        )
    if reduction not in REDUCTIONS or rule.every != 1:
        raise ValueError(
            f"select_bounded: reduction must be one of {', '.join(REDUCTIONS)}, not {reduction!r}, "
            f"and every row has a list, not each {rule.every}th"
        )
    ids: torch.Tensor = SELECT_BOUNDED(q, bounds, candidates, rule, reduction)
    return ids
