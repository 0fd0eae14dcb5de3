"""Selecting blocks by what the summaries that overlap them weigh, pooled; nothing is attended."""

from __future__ import annotations

from math import inf

import torch

from ..ops import Implementation, Op
from ..select import Candidates
from ..summarize import slots_per_page
from . import cpu, reference, triton
from .rule import MAX_LISTED, WEIGHTS, Entries, PooledRule
from .scratch import cpu_scratch_bytes

__all__ = [
    "MAX_LISTED",
    "SELECT_POOLED",
    "WEIGHTS",
    "Entries",
    "PooledRule",
    "cpu_scratch_bytes",
    "select_pooled",
]

SELECT_POOLED = Op(
    "select_pooled",
    reference.select_pooled,
    (
        Implementation("cpu", cpu.select_pooled, cpu.supports),
        Implementation("triton", triton.select_pooled, triton.supports),
    ),
)


def select_pooled(
    q: torch.Tensor,
    fine: Entries,
    candidates: Candidates,
    rule: PooledRule,
    scale: float,
    coarse: Entries | None = None,
) -> torch.Tensor:
    """The blocks whose entries weigh most with a row: one list per row and owner.

    q: [T, H, d]; fine: entries of q's dtype, one owner for H / owners query heads. A row sees the
    entries that are complete at its position. An entry weighs what `rule` says, summed over the
    owner's heads; a block weighs as much as the heaviest entry that overlaps it. coarse: entries
    over which the lse of probabilities is taken instead, in rows that see any.
    Returns int32 [T, owners, rule.listed], ascending, -1 padded. Equal weights: the later block
    wins; NaN never does, nor a block without a complete entry.
    Raises ValueError when shapes, dtypes or sizes disagree.
    """
    for entries in (fine, coarse):
        if entries is not None:
            _check(q, entries, candidates, fine.data.shape[2])
    block, stride = candidates.block, fine.stride
    if block % stride or 256 % (block // stride) or fine.size - stride > block:
        raise ValueError(
            f"select_pooled: a block of {block} must be a power of two of strides of {stride}, at "
            f"most 256, and entries of {fine.size} overlap no more than the next block"
        )
    if candidates.fault is not None:
        raise ValueError(f"select_pooled: {candidates.fault}")
    if candidates.positions.shape != q.shape[:1] or not 0.0 < scale < inf:
        raise ValueError(
            f"select_pooled: positions must be [{q.shape[0]}] and scale positive, got {scale}"
        )
    ids: torch.Tensor = SELECT_POOLED(q, fine, candidates, rule, scale, coarse)
    return ids


def _check(q: torch.Tensor, entries: Entries, candidates: Candidates, owners: int) -> None:
    data = entries.data
    if q.ndim != 3 or data.ndim != 4 or q.shape[2] != data.shape[3] or q.dtype != data.dtype:
        raise ValueError(
            f"select_pooled: q {q.dtype} {tuple(q.shape)} and entries {data.dtype} "
            f"{tuple(data.shape)} do not fit"
        )
    if data.shape[2] != owners or q.shape[1] % owners:
        raise ValueError("select_pooled: heads must be a multiple of owners, the same in all")
    slots = slots_per_page(entries.stride, candidates.page_size, least=1)
    if data.shape[1] != slots or entries.size % entries.stride:
        raise ValueError(
            f"select_pooled: entries must have {slots} slots a page, and a size that is a multiple "
            f"of their stride; got {data.shape[1]}, {entries.size} and {entries.stride}"
        )
