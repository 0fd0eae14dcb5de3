"""Which tokens heads keep, on a GPU: a program for every head of every sequence."""

from __future__ import annotations

import torch

from .. import gpu
from .. import triton_sizes as sizes
from .room import KeptCounts, KeptState, ListRoom

# Rows whose lengths are found together, each from all before it: 4096 comparisons, 32 of each
# thread of four warps.
ROWS = 64


def supports_counts(
    scores: torch.Tensor, thresholds: torch.Tensor, counts: KeptCounts, room: ListRoom
) -> str | None:
    """None when the kernel can serve this call of `keep_above`, otherwise the reason."""
    if not (counts.flags.is_contiguous() and counts.lengths.is_contiguous()):
        return "pages are not contiguous"
    return _refusal(counts.flags.shape[1], scores, thresholds)


def supports_state(scores: torch.Tensor, state: KeptState, room: ListRoom) -> str | None:
    """None when the kernel can serve this call of `keep_best`, otherwise the reason."""
    if not (state.scores.is_contiguous() and state.positions.is_contiguous()):
        return "pages are not contiguous"
    return _refusal(state.scores.shape[2], scores, state.scores)


def supports_scores(scores: torch.Tensor, room: ListRoom) -> str | None:
    """None when the kernel can serve this call of `keep_top`, otherwise the reason."""
    return gpu.triton_refusal(scores)


def _refusal(page: int, *tensors: torch.Tensor) -> str | None:
    if page & (page - 1):
        return f"pages of {page} tokens, which is no power of two"
    return gpu.triton_refusal(*tensors)


def keep_above(
    scores: torch.Tensor, thresholds: torch.Tensor, counts: KeptCounts, room: ListRoom
) -> torch.Tensor:
    """See `saccade.kernels.keep.keep_above`."""
    from .triton_kernel import above_thresholds

    slots, table = scores.new_empty(scores.shape, dtype=torch.int32), counts.table
    above_thresholds[(table.shape[0], scores.shape[1])](
        scores.contiguous(),
        thresholds.contiguous(),
        counts.flags,
        counts.lengths,
        table.contiguous(),
        *_rows(room),
        room.after.contiguous(),
        slots,
        scores.shape[1],
        table.shape[1],
        table.shape[1],
        PAGE=counts.flags.shape[1],
        BT=ROWS,
        FIRST=room.first,
        num_warps=4,
    )
    return slots


def keep_best(scores: torch.Tensor, state: KeptState, room: ListRoom) -> torch.Tensor:
    """See `saccade.kernels.keep.keep_best`."""
    from .triton_kernel import best_so_far

    slots, table = scores.new_empty(scores.shape, dtype=torch.int32), state.table
    best_so_far[(table.shape[0], scores.shape[1])](
        scores.contiguous(),
        state.scores,
        state.positions,
        table.contiguous(),
        *_rows(room),
        room.before.contiguous(),
        room.after.contiguous(),
        slots,
        scores.shape[1],
        table.shape[1],
        table.shape[1],
        PAGE=state.scores.shape[2],
        BN=sizes.RANKED // 2,  # two numbers of each token
        FIRST=room.first,
        num_warps=4,
    )
    return slots


def keep_top(scores: torch.Tensor, room: ListRoom) -> torch.Tensor:
    """See `saccade.kernels.keep.keep_top`."""
    from .triton_kernel import top_of_texts

    slots = scores.new_empty(scores.shape, dtype=torch.int32)
    # Head by head: each of them is read five times.
    top_of_texts[(room.cu_rows.shape[0] - 1, scores.shape[1])](
        scores.T.contiguous(),
        room.cu_rows.contiguous(),
        room.after.contiguous(),
        slots,
        scores.shape[1],
        scores.shape[0],
        BN=sizes.RANKED // 2,  # with twice as many sm_80 spills
        FIRST=room.first,
        num_warps=8,
    )
    return slots


def _rows(room: ListRoom) -> tuple[torch.Tensor, torch.Tensor]:
    return room.cu_rows.contiguous(), room.positions.contiguous()
