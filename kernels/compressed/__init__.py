"""Attention over the summaries of complete blocks, which also says which blocks to read in full."""

from __future__ import annotations

from math import inf

import torch

from ..ops import Implementation, Op
from ..select import Candidates
from . import cpu, reference
from .lists import ListRule

__all__ = ["COMPRESSED", "ListRule", "compressed"]

COMPRESSED = Op(
    "compressed", reference.compressed, (Implementation("cpu", cpu.compressed, cpu.supports),)
)


def compressed(
    q: torch.Tensor,
    entries: torch.Tensor,
    candidates: Candidates,
    rule: ListRule,
    scale: float,
    value_dim: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Softmax attention of every row over the summaries of blocks complete at it, and its list.

    q: [T, H, d]; entries: [pages, slots, G, d] of q's dtype, as `summarize.block_means` writes
    them; their first value_dim channels are the values. A block's weight in its owner's list is its
    probability, summed over the H / G heads of the owner.
    Returns out [T, H, value_dim], lse float32 [T, H] (0 and -inf before the first complete block),
    and ids int32 [T, G, rule.listed], ascending, -1 padded. Equal weights: the later block wins.
    Raises ValueError when shapes or dtypes disagree.
    """
    if q.ndim != 3 or entries.ndim != 4 or q.shape[2] != entries.shape[3]:
        raise ValueError(
            f"compressed: q {tuple(q.shape)} and entries {tuple(entries.shape)} do not fit"
        )
    if q.dtype != entries.dtype or q.shape[1] % entries.shape[2]:
        raise ValueError(
            "compressed: q and entries must share a dtype, heads be a multiple of owners"
        )
    if candidates.positions.shape != q.shape[:1]:
        raise ValueError(f"compressed: positions must be [{q.shape[0]}]")
    if not 0.0 < scale < inf or not 0 < value_dim <= q.shape[2]:
        raise ValueError(
            f"compressed: scale {scale} must be positive, value_dim {value_dim} in 1..{q.shape[2]}"
        )
    out, lse, ids = COMPRESSED(q, entries, candidates, rule, scale, value_dim)
    return out, lse, ids
