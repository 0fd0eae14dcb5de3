"""Moments of keys and far mass by the compiled CPU kernels."""

from __future__ import annotations

import torch

from .. import native
from ..select import Candidates
from ..store import PageLayout
from .rule import MASS_KINDS, MomentBlocks, MomentRule


def supports(
    layout: PageLayout,
    k_pages: torch.Tensor,
    moments: torch.Tensor,
    done: MomentBlocks,
    rule: MomentRule,
) -> str | None:
    """None when the kernel can write these moments, otherwise the reason."""
    if not moments.is_contiguous():
        return "moments are not contiguous"
    return layout.cpu_refusal(k_pages) or native.unsupported(k_pages, moments)


def weighs(
    q: torch.Tensor,
    entries: torch.Tensor,
    candidates: Candidates,
    rule: MomentRule,
    kind: str,
    window: int,
    scale: float,
) -> str | None:
    """None when the kernel can weigh by these entries, otherwise the reason."""
    if not entries.is_contiguous():
        return "entries are not contiguous"
    return native.unsupported(q, entries)


def key_moments(
    layout: PageLayout,
    k_pages: torch.Tensor,
    moments: torch.Tensor,
    done: MomentBlocks,
    rule: MomentRule,
) -> None:
    """See `saccade.kernels.moments.key_moments`."""
    pages, slots, kv_heads, entry_rows, dim = moments.shape
    table, first, last = (x.contiguous() for x in (done.page_table, done.first, done.last))
    native.kernels().key_moments(
        native.DTYPES[k_pages.dtype],
        table.shape[0],
        kv_heads,
        dim,
        layout.page_size,
        pages,
        rule.block,
        slots,
        MASS_KINDS.index(rule.kind),
        entry_rows,
        rule.spread(dim),
        rule.sinks,
        *layout.steps(k_pages),
        k_pages.data_ptr(),
        table.data_ptr(),
        table.stride(0),
        table.shape[1],
        first.data_ptr(),
        last.data_ptr(),
        moments.data_ptr(),
    )


def far_mass(
    q: torch.Tensor,
    entries: torch.Tensor,
    candidates: Candidates,
    rule: MomentRule,
    kind: str,
    window: int,
    scale: float,
) -> torch.Tensor:
    """See `saccade.kernels.moments.far_mass`."""
    rows, heads, dim = q.shape
    pages, slots, kv_heads, entry_rows, _ = entries.shape
    table, cu_rows, positions = (
        x.contiguous() for x in (candidates.page_table, candidates.cu_rows, candidates.positions)
    )
    mass = torch.empty((rows, heads), dtype=torch.float32)
    native.kernels().far_mass(
        native.DTYPES[q.dtype],
        native.DTYPES[entries.dtype],
        table.shape[0],
        rows,
        heads,
        kv_heads,
        dim,
        candidates.page_size,
        pages,
        rule.block,
        slots,
        MASS_KINDS.index(kind),
        entry_rows,
        rule.spread(dim),
        window,
        rule.sinks,
        q.data_ptr(),
        q.stride(0),
        q.stride(1),
        entries.data_ptr(),
        table.data_ptr(),
        table.stride(0),
        table.shape[1],
        cu_rows.data_ptr(),
        positions.data_ptr(),
        scale,
        mass.data_ptr(),
    )
    return mass
