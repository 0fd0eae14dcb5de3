"""Selecting blocks of keys: scores and top-k in one op, scores never written out."""

from __future__ import annotations

import torch

from ..ops import Implementation, Op
from ..summarize import slots_per_page
from . import cpu, cuda, reference, triton
from .candidates import Candidates

__all__ = ["SELECT_BLOCKS", "Candidates", "select_blocks"]

SELECT_BLOCKS = Op(
    "select_blocks",
    reference.select_blocks,
    (
        Implementation("cpu", cpu.select_blocks, cpu.supports),
        Implementation("cuda", cuda.select_blocks, cuda.supports),
        Implementation("triton", triton.select_blocks, triton.supports),
    ),
)


def select_blocks(
    q: torch.Tensor, means: torch.Tensor, candidates: Candidates, topk: int
) -> torch.Tensor:
    """The `topk` best complete blocks of every row by <q, mean>, and the row's own block.

    q: [T, H, d]; means: [pages, slots, Hkv, d], as `summarize.block_means` writes them, of q's
    dtype. Returns int32 [T, H, topk + 1] block ids, ascending, -1 padded: the list type of
    `attend`. Only blocks before the row's own one are candidates, and all are taken where there are
    no more than topk. Equal scores: the later block wins; NaN never does.
    Raises ValueError when shapes or dtypes disagree or topk is not in 0..256.
    """
    if q.ndim != 3 or means.ndim != 4 or q.shape[2] != means.shape[3] or q.dtype != means.dtype:
        raise ValueError(
            f"select_blocks: q {q.dtype} {tuple(q.shape)} and means {means.dtype} "
            f"{tuple(means.shape)} do not fit"
        )
    if q.shape[1] % means.shape[2] or candidates.positions.shape != q.shape[:1]:
        raise ValueError("select_blocks: heads must be a multiple of KV heads, positions [T]")
    if candidates.fault is not None:
        raise ValueError(f"select_blocks: {candidates.fault}")
    if means.shape[1] != slots_per_page(candidates.block, candidates.page_size, least=1):
        raise ValueError(
            f"select_blocks: {means.shape[1]} means a page of {candidates.page_size} do not fit "
            f"blocks of {candidates.block}"
        )
    if not 0 <= topk <= 256:
        raise ValueError(f"select_blocks: topk must be in 0..256, not {topk}")
    ids: torch.Tensor = SELECT_BLOCKS(q, means, candidates, topk)
    return ids
