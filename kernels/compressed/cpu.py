"""Attention over summaries by the compiled CPU kernel."""

from __future__ import annotations

import torch

from .. import native
from ..select import Candidates
from .lists import ListRule, Spans


def supports(
    q: torch.Tensor,
    entries: torch.Tensor,
    candidates: Candidates,
    rule: ListRule | None,
    scale: float,
    value_dim: int,
    spans: Spans,
    value_first: int,
) -> str | None:
    """None when the kernel can serve this call, otherwise the reason."""
    if not entries.is_contiguous():
        return "entries are not contiguous"
    if q.dtype == torch.bfloat16 and q.shape[2] % 2:
        return "odd head dim in bf16"
    return native.unsupported(q, entries)


def compressed(
    q: torch.Tensor,
    entries: torch.Tensor,
    candidates: Candidates,
    rule: ListRule | None,
    scale: float,
    value_dim: int,
    spans: Spans,
    value_first: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `saccade.kernels.compressed.compressed`."""
    rows, heads, dim = q.shape
    pages, slots, owners, width = entries.shape
    table = candidates.page_table
    chosen = rule or ListRule(1)
    out = torch.empty((rows, heads, value_dim), dtype=q.dtype)
    lse = torch.empty((rows, heads), dtype=torch.float32)
    ids = torch.empty((rows, owners, chosen.listed if rule else 0), dtype=torch.int32)
    native.kernels().compressed(
        native.DTYPES[q.dtype],
        table.shape[0],
        rows,
        heads,
        owners,
        dim,
        value_dim,
        candidates.page_size,
        pages,
        slots,
        spans.length,
        spans.stride,
        width,
        value_first,
        candidates.block,
        int(spans.pool == "max"),
        chosen.listed,
        chosen.first,
        chosen.recent,
        chosen.every,
        q.data_ptr(),
        q.stride(0),
        q.stride(1),
        entries.data_ptr(),
        table.data_ptr(),
        table.stride(0),
        table.shape[1],
        candidates.cu_rows.data_ptr(),
        candidates.positions.data_ptr(),
        scale,
        out.data_ptr(),
        lse.data_ptr(),
        ids.data_ptr() if rule else 0,
    )
    return out, lse, ids
