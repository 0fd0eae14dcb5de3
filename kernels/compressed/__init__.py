"""Attention over summaries of blocks or windows, which also says which blocks to read in full."""

from __future__ import annotations

from math import inf

import torch

from ..ops import Implementation, Op
from ..select import Candidates
from . import cpu, reference, triton
from .call import CompressedCall
from .lists import POOLS, ListRule, Spans
from .scratch import cpu_scratch_bytes

__all__ = [
    "COMPRESSED",
    "POOLS",
    "CompressedCall",
    "ListRule",
    "Spans",
    "compressed",
    "cpu_scratch_bytes",
]

COMPRESSED = Op(
    "compressed",
    reference.compressed,
    (
        Implementation("cpu", cpu.compressed, cpu.supports),
        Implementation("triton", triton.compressed, triton.supports),
    ),
)


def compressed(
    q: torch.Tensor,
    entries: torch.Tensor,
    candidates: Candidates,
    rule: ListRule | None,
    scale: float,
    value_dim: int,
    spans: Spans | None = None,
    value_first: int = 0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Softmax attention of every row over the entries complete at it, and its list of blocks.

    q: [T, H, d]; entries: [pages, slots, G, width] of q's dtype, of which the first d channels are
    keys and those from value_first on values (the same ones, it may be). spans: what they
    summarise; None: the blocks, as `summarize.block_means` writes them. An entry weighs its
    probability, summed over the H / G heads of an owner, and blocks weigh as `spans` says.
    rule: None chooses nothing; value_dim 0: chooses only. Later entries of the same sequence change
    nothing, as long as their values are finite.
    Returns out [T, H, value_dim], lse float32 [T, H] (0 and -inf before the first complete entry),
    and ids int32 [T, G, rule.listed], ascending, -1 padded. Equal weights: the later block wins.
    Raises ValueError when shapes, dtypes or sizes disagree.
    """
    spans = spans or Spans(candidates.block, candidates.block)
    _check_tensors(q, entries, candidates)
    if entries.shape[1] != spans.slots(candidates.page_size) or candidates.block % spans.stride:
        raise ValueError(
            f"compressed: {entries.shape[1]} entries a page of {candidates.page_size} and blocks "
            f"of {candidates.block} do not fit {spans}"
        )
    width = entries.shape[3]
    if not 0.0 < scale < inf or value_dim < 0 or not 0 <= value_first <= width - value_dim:
        raise ValueError(
            f"compressed: scale {scale} must be positive, values {value_first} .. "
            f"{value_first + value_dim} within the {width} channels"
        )
    if rule is None and value_dim == 0:
        raise ValueError("compressed: neither a rule nor values, so there is nothing to compute")
    call = CompressedCall(q, entries, candidates, rule, scale, value_dim, spans, value_first)
    out, lse, ids = COMPRESSED(call)
    return out, lse, ids


def _check_tensors(q: torch.Tensor, entries: torch.Tensor, candidates: Candidates) -> None:
    if q.ndim != 3 or entries.ndim != 4 or q.shape[2] > entries.shape[3]:
        raise ValueError(
            f"compressed: q {tuple(q.shape)} and entries {tuple(entries.shape)} do not fit"
        )
    if q.dtype != entries.dtype or q.shape[1] % entries.shape[2]:
        raise ValueError(
            "compressed: q and entries must share a dtype, heads be a multiple of owners"
        )
    if candidates.fault is not None:
        raise ValueError(f"compressed: {candidates.fault}")
    if candidates.positions.shape != q.shape[:1]:
        raise ValueError(f"compressed: positions must be [{q.shape[0]}]")
