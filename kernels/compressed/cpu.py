"""Attention over summaries by the compiled CPU kernel."""

from __future__ import annotations

import torch

from .. import native
from ..store import field_refusal, field_steps
from .call import CompressedCall
from .lists import ListRule


def supports(call: CompressedCall) -> str | None:
    """None when the kernel can serve this call, otherwise the reason."""
    if reason := field_refusal(call.entries):
        return reason
    if call.q.dtype == torch.bfloat16 and call.q.shape[2] % 2:
        return "odd head dim in bf16"
    for name, size in (("page", call.candidates.page_size), ("stride", call.spans.stride)):
        if size & (size - 1):
            return f"a {name} of {size} tokens, no power of two"
    return native.unsupported(call.q, call.entries)


def compressed(call: CompressedCall) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `saccade.kernels.compressed.compressed`."""
    q, candidates, spans = call.q, call.candidates, call.spans
    rows, heads, dim = q.shape
    pages, slots, owners, width = call.entries.shape
    table = candidates.page_table
    chosen = call.rule or ListRule(1)
    out, lse, ids = call.results()
    native.kernels().compressed(
        native.DTYPES[q.dtype],
        table.shape[0],
        rows,
        heads,
        owners,
        dim,
        call.value_dim,
        candidates.page_size,
        pages,
        slots,
        spans.length,
        spans.stride,
        width,
        call.value_first,
        candidates.block,
        int(spans.pool == "max"),
        chosen.listed,
        chosen.first,
        chosen.recent,
        chosen.every,
        q.data_ptr(),
        q.stride(0),
        q.stride(1),
        call.entries.data_ptr(),
        *field_steps(call.entries),
        table.data_ptr(),
        table.stride(0),
        table.shape[1],
        candidates.cu_rows.data_ptr(),
        candidates.positions.data_ptr(),
        call.scale,
        out.data_ptr(),
        lse.data_ptr(),
        ids.data_ptr() if call.rule else 0,
    )
    return out, lse, ids
