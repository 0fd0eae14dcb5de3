"""Block selection by the compiled CPU kernel."""

from __future__ import annotations

import torch

from .. import native
from .candidates import Candidates


def supports(q: torch.Tensor, means: torch.Tensor, candidates: Candidates, topk: int) -> str | None:
    """None when the kernel can serve this call, otherwise the reason."""
    if not means.is_contiguous():
        return "means are not contiguous"
    if q.dtype == torch.bfloat16 and q.shape[2] % 2:
        return "odd head dim in bf16"
    return native.unsupported(q, means)


def select_blocks(
    q: torch.Tensor, means: torch.Tensor, candidates: Candidates, topk: int
) -> torch.Tensor:
    """See `saccade.kernels.select.select_blocks`."""
    rows, heads, dim = q.shape
    pages, slots, kv_heads, _ = means.shape
    table = candidates.page_table
    ids = torch.empty((rows, heads, topk + 1), dtype=torch.int32)
    native.kernels().select_blocks(
        native.DTYPES[q.dtype],
        table.shape[0],
        rows,
        heads,
        kv_heads,
        dim,
        candidates.page_size,
        pages,
        candidates.block,
        slots,
        topk,
        q.data_ptr(),
        q.stride(0),
        q.stride(1),
        means.data_ptr(),
        table.data_ptr(),
        table.stride(0),
        table.shape[1],
        candidates.cu_rows.data_ptr(),
        candidates.positions.data_ptr(),
        ids.data_ptr(),
    )
    return ids
