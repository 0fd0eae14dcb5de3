"""The best tokens so far with the compiled CPU kernel."""

from __future__ import annotations

import torch

from .. import native
from .room import KeptState, ListRoom


def supports(scores: torch.Tensor, state: KeptState, room: ListRoom) -> str | None:
    """None when the kernel can serve this call, otherwise the reason."""
    if not (state.scores.is_contiguous() and state.positions.is_contiguous()):
        return "pages are not contiguous"
    return native.unsupported(scores, state.scores)


def keep_best(scores: torch.Tensor, state: KeptState, room: ListRoom) -> torch.Tensor:
    """See `saccade.kernels.keep.keep_best`."""
    pages, heads, page = state.scores.shape
    slots = torch.empty(scores.shape, dtype=torch.int32)
    # These stay referenced until the kernel has returned: the copies that `contiguous` makes too.
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
