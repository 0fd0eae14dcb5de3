"""Which tokens heads keep, with the compiled CPU kernels."""

from __future__ import annotations

import torch

from .. import native
from .room import KeptCounts, KeptState, ListRoom


def supports_counts(
    scores: torch.Tensor, thresholds: torch.Tensor, counts: KeptCounts, room: ListRoom
) -> str | None:
    """None when the kernel can serve this call of `keep_above`, otherwise the reason."""
    if not (counts.flags.is_contiguous() and counts.lengths.is_contiguous()):
        return "pages are not contiguous"
    return native.unsupported(scores, thresholds)


def supports_state(scores: torch.Tensor, state: KeptState, room: ListRoom) -> str | None:
    """None when the kernel can serve this call of `keep_best`, otherwise the reason."""
    if not (state.scores.is_contiguous() and state.positions.is_contiguous()):
        return "pages are not contiguous"
    return native.unsupported(scores, state.scores)


def supports_scores(scores: torch.Tensor, room: ListRoom) -> str | None:
    """None when the kernel can serve this call of `keep_top`, otherwise the reason."""
    return native.unsupported(scores)


def keep_above(
    scores: torch.Tensor, thresholds: torch.Tensor, counts: KeptCounts, room: ListRoom
) -> torch.Tensor:
    """See `saccade.kernels.keep.keep_above`."""
    pages, page, heads = counts.flags.shape
    slots = torch.empty(scores.shape, dtype=torch.int32)
    # These stay referenced until the kernel has returned: the copies that `contiguous` makes too.
    own, limits, table, cu_rows, positions, after = (
        each.contiguous()
        for each in (scores, thresholds, counts.table, room.cu_rows, room.positions, room.after)
    )
    native.kernels().keep_above(
        table.shape[0],
        scores.shape[0],
        heads,
        page,
        pages,
        own.data_ptr(),
        limits.data_ptr(),
        counts.flags.data_ptr(),
        counts.lengths.data_ptr(),
        table.data_ptr(),
        table.stride(0),
        table.shape[1],
        cu_rows.data_ptr(),
        positions.data_ptr(),
        after.data_ptr(),
        room.first,
        slots.data_ptr(),
    )
    return slots


def keep_best(scores: torch.Tensor, state: KeptState, room: ListRoom) -> torch.Tensor:
    """See `saccade.kernels.keep.keep_best`."""
    pages, heads, page = state.scores.shape
    slots = torch.empty(scores.shape, dtype=torch.int32)
    own, table, cu_rows, positions, before, after = (
        each.contiguous()
        for each in (scores, state.table, room.cu_rows, room.positions, room.before, room.after)
    )
    native.kernels().keep_best(
        table.shape[0],
        scores.shape[0],
        heads,
        page,
        pages,
        own.data_ptr(),
        state.scores.data_ptr(),
        state.positions.data_ptr(),
        table.data_ptr(),
        table.stride(0),
        table.shape[1],
        cu_rows.data_ptr(),
        positions.data_ptr(),
        before.data_ptr(),
        after.data_ptr(),
        room.first,
        slots.data_ptr(),
    )
    return slots


def keep_top(scores: torch.Tensor, room: ListRoom) -> torch.Tensor:
    """See `saccade.kernels.keep.keep_top`."""
    slots = torch.empty(scores.shape, dtype=torch.int32)
    own, cu_rows, after = (each.contiguous() for each in (scores, room.cu_rows, room.after))
    native.kernels().keep_top(
        cu_rows.shape[0] - 1,
        *scores.shape,
        own.data_ptr(),
        cu_rows.data_ptr(),
        after.data_ptr(),
        room.first,
        slots.data_ptr(),
    )
    return slots
