"""Selection by pooled weights with the compiled CPU kernel."""

from __future__ import annotations

import torch

from .. import native
from ..select import Candidates
from .rule import WEIGHTS, Entries, PooledRule


def supports(
    q: torch.Tensor,
    fine: Entries,
    candidates: Candidates,
    rule: PooledRule,
    scale: float,
    coarse: Entries | None,
) -> str | None:
    """None when the kernel can serve this call, otherwise the reason."""
    data = [entries.data for entries in (fine, coarse) if entries is not None]
    if not all(each.is_contiguous() for each in data):
        return "entries are not contiguous"
    if q.dtype == torch.bfloat16 and q.shape[2] % 2:
        return "odd head dim in bf16"
    return native.unsupported(q, *data)


def select_pooled(
    q: torch.Tensor,
    fine: Entries,
    candidates: Candidates,
    rule: PooledRule,
    scale: float,
    coarse: Entries | None,
) -> torch.Tensor:
    """See `saccade.kernels.pooled.select_pooled`."""
    rows, heads, dim = q.shape
    pages, _, owners, _ = fine.data.shape
    table = candidates.page_table
    ids = torch.empty((rows, owners, rule.listed), dtype=torch.int32)
    native.kernels().select_pooled(
        native.DTYPES[q.dtype],
        table.shape[0],
        rows,
        heads,
        owners,
        dim,
        candidates.page_size,
        pages,
        candidates.block,
        rule.listed,
        rule.first,
        rule.recent,
        WEIGHTS.index(rule.weight),
        q.data_ptr(),
        q.stride(0),
        q.stride(1),
        *_place(fine),
        *_place(coarse),
        table.data_ptr(),
        table.stride(0),
        table.shape[1],
        candidates.cu_rows.data_ptr(),
        candidates.positions.data_ptr(),
        scale,
        ids.data_ptr(),
    )
    return ids


def _place(entries: Entries | None) -> tuple[int, int, int, int]:
    if entries is None:
        return 0, 0, 0, 0
    return entries.data.data_ptr(), entries.data.shape[1], entries.size, entries.stride
