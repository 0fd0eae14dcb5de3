"""Paged attention by the compiled CPU kernel."""

from __future__ import annotations

import torch

from .. import native
from .call import AttendCall


def supports(call: AttendCall) -> str | None:
    """None when the kernel can serve this call, otherwise the reason."""
    if reason := call.output_refusal():
        return reason
    pages = call.k_pages, call.v_pages
    return call.layout.cpu_refusal(*pages) or native.unsupported(call.q, *pages)


INT32_MAX = 2**31 - 1  # the kernel's positions; a wider window or more sinks mean every key


def _pointer(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _dense(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.contiguous()


def attend(call: AttendCall) -> tuple[torch.Tensor, torch.Tensor]:
    """See `saccade.kernels.attend.attend`."""
    q, k_pages, keys = call.q, call.k_pages, call.keys
    pages, kv_heads = k_pages.shape[:2]
    out, lse = call.results()
    rows, heads, v_dim = out.shape
    # These stay referenced until the kernel has returned: the copies that `contiguous` makes too.
    table, cu_rows, positions = (
        x.contiguous() for x in (keys.page_table, keys.cu_rows, keys.positions)
    )
    lo, hi, sinks = _dense(keys.lo), _dense(keys.hi), _dense(call.sink_logits)
    blocks = keys.blocks
    ids = None if blocks is None else blocks.ids.contiguous()
    if ids is not None and ids.shape[2] == 0:  # the kernel knows absent lists by a null pointer
        ids = ids.new_full((*ids.shape[:2], 1), -1)
    list_of_row = None if blocks is None else _dense(blocks.list_of_row)
    native.kernels().attend(
        native.DTYPES[q.dtype],
        native.DTYPES[out.dtype],
        table.shape[0],
        rows,
        heads,
        kv_heads,
        q.shape[2],
        v_dim,
        call.layout.page_size,
        pages,
        q.data_ptr(),
        q.stride(0),
        q.stride(1),
        *call.layout.steps(k_pages),
        k_pages.data_ptr(),
        0 if call.value_dim else call.v_pages.data_ptr(),  # null: the values are in the keys
        table.data_ptr(),
        table.stride(0),
        table.shape[1],
        cu_rows.data_ptr(),
        positions.data_ptr(),
        _pointer(lo),
        _pointer(hi),
        min(keys.window or 0, INT32_MAX),
        min(keys.sinks, INT32_MAX),
        call.scale,
        call.softcap or 0.0,
        _pointer(sinks),
        _pointer(ids),
        _pointer(list_of_row),
        0 if ids is None else ids.shape[1],
        0 if ids is None else ids.shape[2],
        0 if blocks is None else blocks.block,
        blocks is not None and blocks.scattered,
        out.data_ptr(),
        lse.data_ptr(),
    )
    return out, lse
