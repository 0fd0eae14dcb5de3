"""Attention over lists that the rows change, on a GPU: all rows at once.

Which keys a row sees is known from the slots alone, before anything is written; so the rows attend
to the pages as they were and to each other's keys, and then those that stay are written. A list's
order is then that of its slots before the rows, and the rows': last bits depend on how a text was
cut.
"""

from __future__ import annotations

import torch

from .. import gpu
from .. import triton_sizes as sizes
from ..attend.tiles import INT32_MAX
from ..store import write_pages
from .call import TurnsCall

COMPARED = 64  # rows beside rows, 4096 comparisons of four warps


def supports(call: TurnsCall) -> str | None:
    """None when the kernels can serve this call, otherwise the reason."""
    if reason := call.layout.triton_refusal(*call.pages):
        return reason
    if max(call.rows[0].shape[2], call.rows[2].shape[2]) > 256:
        return "more than 256 channels"
    return gpu.triton_refusal(*call.rows, *call.pages)


def gpu_scratch_bytes(rows: int, lists: int, slots: int) -> int:
    """Bytes of a call of so many rows and lists of so many slots: by which row every key ends, and
    where the rows are written.
    """
    return 4 * lists * slots + (4 + 4 + 8) * rows


def attend_turns(call: TurnsCall) -> torch.Tensor:
    """See `saccade.kernels.turns.attend_turns`."""
    layout, (_, k, v), pages, _, slots, replaces, _ = call
    out, row_ends = attend_as_were(call)
    # What is appended first: a page that begins with a token is cleared, unless others are in it.
    write_pages(layout, *pages, k, v, slots.where(~replaces, -1))
    last = replaces & (row_ends == INT32_MAX)
    write_pages(layout, *pages, k, v, slots.where(last, -1), False)
    return out


def attend_as_were(call: TurnsCall) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows' answers, with nothing written; and by which row each row's key is replaced, int32
    [N], INT32_MAX: by none.
    """
    from .triton_kernel import key_ends, turn_tiles

    layout, (q, k, v), pages, keys, slots, replaces, scale = call
    if keys.hi is None:
        raise ValueError("attention in turns needs how much of its list a row sees")
    out = q.new_empty(v.shape, dtype=torch.float32)
    table, cu_rows, flags = keys.page_table.contiguous(), keys.cu_rows.contiguous(), replaces.int()
    lists, width = table.shape
    row_ends = slots.new_empty(slots.shape, dtype=torch.int32)
    slot_ends = table.new_full((lists, width * layout.page_size), INT32_MAX)
    padded = sizes.power_of_two(lists)
    key_ends[(sizes.most_tiles(len(slots), lists, COMPARED),)](
        slots.contiguous(), flags, cu_rows, table, row_ends, slot_ends, lists, width, width,
        BT=COMPARED, BN=COMPARED, SP=padded, PAGE=layout.page_size, num_warps=4,
    )  # fmt: skip
    tile = sizes.turns(max(q.shape[2], v.shape[2]), q.dtype, gpu.capability(q))
    turn_tiles[(sizes.most_tiles(len(slots), lists, tile.rows),)](
        q, k, v, *pages, table, cu_rows, keys.hi.contiguous(), flags, row_ends, slot_ends, out,
        lists, q.stride(0), k.stride(0), v.stride(0), pages[0].stride(0), pages[1].stride(0),
        width, width, scale * sizes.LOG2E,
        BT=tile.rows, BN=min(tile.keys, layout.page_size), SP=padded, PAGE=layout.page_size,
        D=q.shape[2], DV=v.shape[2],
        BD=max(sizes.power_of_two(q.shape[2]), 16), BDV=max(sizes.power_of_two(v.shape[2]), 16),
        UPCAST=gpu.upcast(q), num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return out, row_ends
