"""Key bounds and selection by them with the compiled CPU kernels."""

from __future__ import annotations

import torch

from .. import native
from ..compressed.lists import ListRule
from ..select import Candidates
from ..store import PageLayout
from ..summarize import CompletedBlocks


def supports(
    layout: PageLayout, k_pages: torch.Tensor, bounds: torch.Tensor, done: CompletedBlocks
) -> str | None:
    """None when the kernel can write these bounds, otherwise the reason."""
    if not bounds.is_contiguous():
        return "bounds are not contiguous"
    return layout.cpu_refusal(k_pages) or native.unsupported(k_pages, bounds)


def selects(
    q: torch.Tensor,
    bounds: torch.Tensor,
    candidates: Candidates,
    rule: ListRule,
    reduction: str,
) -> str | None:
    """None when the kernel can select by these bounds, otherwise the reason."""
    if not bounds.is_contiguous():
        return "bounds are not contiguous"
    return native.unsupported(q, bounds)


def key_bounds(
    layout: PageLayout, k_pages: torch.Tensor, bounds: torch.Tensor, done: CompletedBlocks
) -> None:
    """See `saccade.kernels.bounds.key_bounds`."""
    pages, slots, kv_heads, _, dim = bounds.shape
    native.kernels().key_bounds(
        native.DTYPES[bounds.dtype],
        done.home.numel(),
        kv_heads,
        dim,
        layout.page_size,
        pages,
        done.block,
        slots,
        *layout.steps(k_pages),
        k_pages.data_ptr(),
        done.members.data_ptr(),
        done.home.data_ptr(),
        bounds.data_ptr(),
    )


def select_bounded(
    q: torch.Tensor,
    bounds: torch.Tensor,
    candidates: Candidates,
    rule: ListRule,
    reduction: str,
) -> torch.Tensor:
    """See `saccade.kernels.bounds.select_bounded`."""
    rows, heads, dim = q.shape
    pages, slots, kv_heads, _, _ = bounds.shape
    table = candidates.page_table
    ids = torch.empty((rows, kv_heads, rule.listed), dtype=torch.int32)
    native.kernels().select_bounded(
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
        rule.listed,
        rule.first,
        rule.recent,
        reduction == "sum",
        q.data_ptr(),
        q.stride(0),
        q.stride(1),
        bounds.data_ptr(),
        table.data_ptr(),
        table.stride(0),
        table.shape[1],
        candidates.cu_rows.data_ptr(),
        candidates.positions.data_ptr(),
        ids.data_ptr(),
    )
    return ids
