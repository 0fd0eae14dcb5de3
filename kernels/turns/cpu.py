"""Attention in turns by the compiled CPU kernel: a thread goes through a list."""

from __future__ import annotations

import torch

from .. import native
from .call import TurnsCall


def supports(call: TurnsCall) -> str | None:
    """None when the kernel can serve this call, otherwise the reason."""
    return call.layout.cpu_refusal(*call.pages) or native.unsupported(*call.rows, *call.pages)


def attend_turns(call: TurnsCall) -> torch.Tensor:
    """See `saccade.kernels.turns.attend_turns`."""
    (q, k, v), pages, keys = call.rows, call.pages, call.keys
    out = torch.empty(v.shape, dtype=torch.float32)
    lse = torch.empty(q.shape[0], dtype=torch.float32)
    # These stay referenced until the kernel has returned: the copies that `contiguous` makes too.
    table, cu_rows, positions, where, flags = (
        x.contiguous()
        for x in (keys.page_table, keys.cu_rows, keys.positions, call.slots, call.replaces)
    )
    hi = None if keys.hi is None else keys.hi.contiguous()
    native.kernels().attend_turns(
        native.DTYPES[q.dtype],
        native.DTYPES[out.dtype],
        table.shape[0],
        q.shape[0],
        q.shape[2],
        v.shape[2],
        call.layout.page_size,
        pages[0].shape[0],
        q.data_ptr(),
        q.stride(0),
        *call.layout.steps(pages[0]),
        pages[0].data_ptr(),
        pages[1].data_ptr(),
        table.data_ptr(),
        table.stride(0),
        table.shape[1],
        cu_rows.data_ptr(),
        positions.data_ptr(),
        0 if hi is None else hi.data_ptr(),
        call.scale,
        out.data_ptr(),
        lse.data_ptr(),
        k.data_ptr(),
        k.stride(0),
        v.data_ptr(),
        v.stride(0),
        where.data_ptr(),
        flags.data_ptr(),
    )
    return out
