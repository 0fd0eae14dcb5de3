"""Selection by key scores with the compiled CPU kernel."""

from __future__ import annotations

import torch

from .. import native
from ..select import Candidates
from ..store import PageLayout
from .rule import UNIONS, KeyRule


def supports(
    layout: PageLayout,
    q: torch.Tensor,
    k_pages: torch.Tensor,
    candidates: Candidates,
    rule: KeyRule,
    scale: float,
    lse: torch.Tensor,
) -> str | None:
    """None when the kernel can serve this call, otherwise the reason."""
    if not lse.is_contiguous():
        return "lse is not contiguous"
    return layout.cpu_refusal(k_pages) or native.unsupported(q, k_pages)


def select_keys(
    layout: PageLayout,
    q: torch.Tensor,
    k_pages: torch.Tensor,
    candidates: Candidates,
    rule: KeyRule,
    scale: float,
    lse: torch.Tensor,
) -> torch.Tensor:
    """See `saccade.kernels.select_keys.select_keys`."""
    rows, heads, dim = q.shape
    table = candidates.page_table
    ids = torch.empty((rows, rule.owners(heads), rule.listed), dtype=torch.int32)
    native.kernels().select_keys(
        native.DTYPES[q.dtype],
        table.shape[0],
        rows,
        heads,
        k_pages.shape[1],
        dim,
        layout.page_size,
        k_pages.shape[0],
        candidates.block,
        rule.listed,
        rule.first,
        rule.recent,
        UNIONS.index(rule.union),
        q.data_ptr(),
        q.stride(0),
        q.stride(1),
        *layout.steps(k_pages),
        k_pages.data_ptr(),
        table.data_ptr(),
        table.stride(0),
        table.shape[1],
        candidates.cu_rows.data_ptr(),
        candidates.positions.data_ptr(),
        scale,
        lse.data_ptr(),
        ids.data_ptr(),
    )
    return ids
