"""Selecting blocks by the scores of the keys themselves, where a layer has read them all anyway."""

from __future__ import annotations

from math import inf

import torch

from ..ops import Implementation, Op
from ..select import Candidates
from ..store import PageLayout
from . import cpu, reference, triton
from .rule import UNIONS, KeyRule
from .scratch import cpu_scratch_bytes

__all__ = ["SELECT_KEYS", "UNIONS", "KeyRule", "cpu_scratch_bytes", "select_keys"]

SELECT_KEYS = Op(
    "select_keys",
    reference.select_keys,
    (
        Implementation("cpu", cpu.select_keys, cpu.supports),
        Implementation("triton", triton.select_keys, triton.supports),
    ),
)
MAX_BLOCK = 512


def select_keys(
    layout: PageLayout,
    q: torch.Tensor,
    k_pages: torch.Tensor,
    candidates: Candidates,
    rule: KeyRule,
    scale: float,
    lse: torch.Tensor,
) -> torch.Tensor:
    """The blocks that hold every row's best keys, its own unfinished block among the candidates.

    q: [T, H, d]; k_pages: as `layout` allocates them, of q's dtype; lse: float32 [T, H], of the
    row over all its keys (for mean_prob). A block's score is that of its best key up to the row's
    position. Returns int32 [T, owners, rule.listed], ascending, -1 padded, where owners is H for
    per_head and else 1. Equal scores: the later block wins; equal ranks: the earlier head. NaN is
    never chosen. Raises ValueError when shapes or dtypes disagree.
    """
    dim = layout.key_dim(k_pages)
    if q.ndim != 3 or q.shape[2] != dim or q.shape[1] % k_pages.shape[1]:
        raise ValueError(f"select_keys: q {tuple(q.shape)} does not fit {tuple(k_pages.shape)}")
    if q.dtype != k_pages.dtype or lse.shape != q.shape[:2] or lse.dtype != torch.float32:
        raise ValueError("select_keys: q and pages must share a dtype, lse be float32 [T, H]")
    block = candidates.block
    if not 16 <= block <= MAX_BLOCK or block & (block - 1) or not 0.0 < scale < inf:
        raise ValueError(
            f"select_keys: block must be a power of two in 16..{MAX_BLOCK} and scale positive, "
            f"got {block} and {scale}"
        )
    if candidates.fault is not None:
        raise ValueError(f"select_keys: {candidates.fault}")
    if candidates.positions.shape != q.shape[:1] or candidates.page_size != layout.page_size:
        raise ValueError(f"select_keys: positions must be [{q.shape[0]}], pages of the layout")
    ids: torch.Tensor = SELECT_KEYS(layout, q, k_pages, candidates, rule, scale, lse)
    return ids
