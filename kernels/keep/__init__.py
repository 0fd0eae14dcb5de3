"""Which tokens expert-choice heads keep, by their router's scores: three rules.

A rule gives slots: int32 [T, E], where in its list a head keeps the token of a row, or -1.
"""

from __future__ import annotations

import torch

from .. import gpu
from ..ops import Implementation, Op
from . import cpu, reference, triton
from .room import KeptCounts, KeptState, ListRoom

__all__ = [
    "KEEP_ABOVE",
    "KEEP_BEST",
    "KEEP_TOP",
    "KeptCounts",
    "KeptState",
    "ListRoom",
    "keep_above",
    "keep_best",
    "keep_top",
]

KEEP_ABOVE = Op(
    "keep_above",
    reference.keep_above,
    (
        Implementation("cpu", cpu.keep_above, cpu.supports_counts),
        Implementation("triton", triton.keep_above, triton.supports_counts),
    ),
)
KEEP_BEST = Op(
    "keep_best",
    reference.keep_best,
    (
        Implementation("cpu", cpu.keep_best, cpu.supports_state),
        Implementation("triton", triton.keep_best, triton.supports_state),
    ),
)
KEEP_TOP = Op(
    "keep_top",
    reference.keep_top,
    (
        Implementation("cpu", cpu.keep_top, cpu.supports_scores),
        Implementation("triton", triton.keep_top, triton.supports_scores),
    ),
)


def keep_above(
    scores: torch.Tensor, thresholds: torch.Tensor, counts: KeptCounts, room: ListRoom
) -> torch.Tensor:
    """Tokens whose score is above their head's threshold, as long as the list has room.

    scores: float32 [T, E]; thresholds: float32 [E]. Lists only grow. `counts` says how long they
    are before the rows, by the page of the token before, and afterwards knows the rows' tokens too;
    what it has of earlier tokens is not changed. A NaN is never kept. Raises ValueError when shapes
    or dtypes disagree.
    """
    _check(scores, room)
    heads = scores.shape[1]
    if thresholds.shape != (heads,) or thresholds.dtype != torch.float32:
        raise ValueError(
            f"keep_above: thresholds must be float32 [{heads}], got {tuple(thresholds.shape)}"
        )
    shape = counts.flags.shape
    if len(shape) != 3 or shape[2] != heads or counts.lengths.shape != (shape[0], heads):
        raise ValueError(
            f"keep_above: flags {tuple(shape)} and lengths {tuple(counts.lengths.shape)} must be "
            f"[pages, page size, {heads}] and [pages, {heads}]"
        )
    if counts.flags.dtype != torch.uint8 or counts.lengths.dtype != torch.int32:
        raise ValueError("keep_above: flags must be uint8 and lengths int32")
    if counts.table.dtype != torch.int32 or counts.table.shape[0] != room.cu_rows.shape[0] - 1:
        raise ValueError("keep_above: the table must be int32 [S, max pages]")
    slots: torch.Tensor = KEEP_ABOVE(scores, thresholds, counts, room)
    return slots


def keep_best(scores: torch.Tensor, state: KeptState, room: ListRoom) -> torch.Tensor:
    """The best tokens so far: a token is kept when the list grows, or else if its score is at least
    the lowest one in the list, whose token it replaces; of equal scores the later token is better.

    scores: float32 [T, E]; a NaN is worse than all. Lists are always as long as they may be.
    `state` has the lists before the rows, and afterwards those after them. Raises ValueError when
    shapes or dtypes disagree.
    """
    _check(scores, room)
    shape = state.scores.shape
    if len(shape) != 3 or shape[1] != scores.shape[1] or state.positions.shape != shape:
        raise ValueError(
            f"keep_best: state {tuple(shape)}, {tuple(state.positions.shape)} must be [pages, "
            f"{scores.shape[1]}, page size]"
        )
    if state.scores.dtype != torch.float32 or state.positions.dtype != torch.int32:
        raise ValueError("keep_best: the state's scores must be float32 and its positions int32")
    if state.table.dtype != torch.int32 or state.table.shape[0] != room.cu_rows.shape[0] - 1:
        raise ValueError("keep_best: the state's table must be int32 [S, max pages]")
    slots: torch.Tensor = KEEP_BEST(scores, state, room)
    return slots


def keep_top(scores: torch.Tensor, room: ListRoom) -> torch.Tensor:
    """The best tokens of whole texts, as many as a list may have at their ends, in their order.

    scores: float32 [T, E], of equal ones the later is better, and a NaN is worse than all. Not
    causal. Raises ValueError when shapes or dtypes disagree, or a sequence does not begin at 0.
    """
    _check(scores, room)
    starts = room.positions[room.cu_rows[:-1].long()]
    if starts.any():
        raise ValueError(f"keep_top: sequences must be whole, they begin at {starts.tolist()}")
    slots: torch.Tensor = KEEP_TOP(scores, room)
    return slots


def _check(scores: torch.Tensor, room: ListRoom) -> None:
    rows = scores.shape[:1]
    if scores.ndim != 2 or scores.dtype != torch.float32:
        raise ValueError(f"keep: scores must be float32 [T, E], got {tuple(scores.shape)}")
    if room.cu_rows.dtype != torch.int32 or room.cu_rows.ndim != 1:
        raise ValueError("keep: cu_rows must be int32 [S + 1]")
    _check_cut(room, rows[0])
    for name, each, dtype in (
        ("positions", room.positions, torch.int64),
        ("before", room.before, torch.int32),
        ("after", room.after, torch.int32),
    ):
        if each.shape != rows or each.dtype != dtype:
            raise ValueError(f"keep: {name} must be {dtype} [{rows[0]}], got {tuple(each.shape)}")


def _check_cut(room: ListRoom, rows: int) -> None:
    """Every sequence has rows (looked at where that costs nothing: in CPU memory)."""
    if gpu.serves(room.cu_rows):
        return
    bounds = room.cu_rows.tolist()
    if bounds[0] != 0 or bounds[-1] != rows or any(a >= b for a, b in room.sequences):
        raise ValueError(f"keep: cu_rows must rise from 0 to {rows}, got {bounds[:8]}")
