"""Paged attention by the compiled CPU kernel."""

from __future__ import annotations

import torch

from .. import native
from ..store import PageLayout
from .keys import Keys


def supports(
    layout: PageLayout,
    q: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    keys: Keys,
    scale: float,
    softcap: float | None,
    sink_logits: torch.Tensor | None,
    out_dtype: torch.dtype,
    value_dim: int | None = None,
) -> str | None:
    """None when the kernel can serve this call, otherwise the reason."""
    if out_dtype not in (q.dtype, torch.float32):
        return f"output {out_dtype} for input {q.dtype}"
    return layout.cpu_refusal(k_pages, v_pages) or native.unsupported(q, k_pages, v_pages)


INT32_MAX = 2**31 - 1  # the kernel's positions; a wider window or more sinks mean every key


def _pointer(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _dense(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.contiguous()


def attend(
    layout: PageLayout,
    q: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    keys: Keys,
    scale: float,
    softcap: float | None,
    sink_logits: torch.Tensor | None,
    out_dtype: torch.dtype,
    value_dim: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `saccade.kernels.attend.attend`."""
    rows, heads, head_dim = q.shape
    pages, kv_heads = k_pages.shape[:2]
    v_dim = value_dim or layout.dims(k_pages, v_pages)[1]
    out = torch.empty((rows, heads, v_dim), dtype=out_dtype)
    lse = torch.empty((rows, heads), dtype=torch.float32)
    # These stay referenced until the kernel has returned: the copies that `contiguous` makes too.
    table, cu_rows, positions = (
        x.contiguous() for x in (keys.page_table, keys.cu_rows, keys.positions)
    )
    lo, hi, sink_logits = _dense(keys.lo), _dense(keys.hi), _dense(sink_logits)
    blocks = keys.blocks
    ids = None if blocks is None else blocks.ids.contiguous()
    if ids is not None and ids.shape[2] == 0:  # the kernel knows absent lists by a null pointer
        ids = ids.new_full((*ids.shape[:2], 1), -1)
    list_of_row = None if blocks is None else _dense(blocks.list_of_row)
    native.kernels().attend(
        native.DTYPES[q.dtype],
        native.DTYPES[out_dtype],
        table.shape[0],
        rows,
        heads,
        kv_heads,
        head_dim,
        v_dim,
        layout.page_size,
        pages,
        q.data_ptr(),
        q.stride(0),
        q.stride(1),
        *layout.steps(k_pages),
        k_pages.data_ptr(),
        0 if value_dim else v_pages.data_ptr(),  # null: the values are in the keys
        table.data_ptr(),
        table.stride(0),
        table.shape[1],
        cu_rows.data_ptr(),
        positions.data_ptr(),
        _pointer(lo),
        _pointer(hi),
        min(keys.window or 0, INT32_MAX),
        min(keys.sinks, INT32_MAX),
        scale,
        softcap or 0.0,
        _pointer(sink_logits),
        _pointer(ids),
        _pointer(list_of_row),
        0 if ids is None else ids.shape[1],
        0 if ids is None else ids.shape[2],
        0 if blocks is None else blocks.block,
        out.data_ptr(),
        lse.data_ptr(),
    )
    return out, lse
