"""Moments of keys and far mass on a GPU."""

from __future__ import annotations

from typing import Any

import torch

from .. import gpu
from .. import triton_sizes as sizes
from ..select import Candidates
from ..store import PageLayout
from .rule import MomentBlocks, MomentRule

RUN = 32  # keys added at a time
SLICE = 16  # rows of a covariance at a time, the least of a product


def supports(
    layout: PageLayout,
    k_pages: torch.Tensor,
    moments: torch.Tensor,
    done: MomentBlocks,
    rule: MomentRule,
) -> str | None:
    """None when the kernel can write these moments, otherwise the reason."""
    if reason := layout.triton_refusal(k_pages):
        return reason
    if not moments.is_contiguous():
        return "moments are not contiguous"
    if k_pages.shape[3] > 256:
        return "more than 256 channels"
    return gpu.triton_refusal(k_pages, moments)


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
    if entries.stride(3) != entries.shape[4]:
        return "the vectors of an entry are not contiguous"
    if q.shape[2] > 256:
        return "more than 256 channels"
    return gpu.triton_refusal(q, entries)


def key_moments(
    layout: PageLayout,
    k_pages: torch.Tensor,
    moments: torch.Tensor,
    done: MomentBlocks,
    rule: MomentRule,
) -> None:
    """See `saccade.kernels.moments.key_moments`."""
    from .triton_kernel import write_moments

    _, slots, kv_heads, vectors, dim = moments.shape
    table, rows = done.page_table.contiguous(), vectors - 1
    # Blocks that build on each other are one program's.
    chains = done.most if rule.kind == "blocks" else min(rule.spread(dim), done.most)
    slices = -(-rows // SLICE) if rule.kind == "full" else 1
    write_moments[(table.shape[0], chains, kv_heads * slices)](
        k_pages,
        moments,
        table,
        done.first.contiguous(),
        done.last.contiguous(),
        *k_pages.stride()[:2],
        table.stride(0),
        table.shape[1],
        rule.sinks,
        kv_heads,
        chains if rule.kind == "blocks" else rule.spread(dim),
        D=dim,
        BD=max(sizes.power_of_two(dim), 16),
        BLOCK=rule.block,
        PAGE=layout.page_size,
        SLOTS=slots,
        SPREAD=rule.spread(dim),
        ROWS=rows,
        BR=SLICE if rule.kind == "full" else 0,
        JOINS=rule.kind != "blocks",
        BN=RUN,
        num_warps=4,
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
    from .mass_kernel import far_blocks, far_whole

    rows, heads, dim = q.shape
    table, (slots, kv_heads) = candidates.page_table.contiguous(), entries.shape[1:3]
    mass = torch.empty((rows, heads), dtype=torch.float32, device=q.device)
    if not rows:
        return mass
    group, sequences = heads // kv_heads, table.shape[0]
    args = (
        q,
        entries,
        table,
        candidates.cu_rows.contiguous(),
        candidates.positions.contiguous(),
        mass,
        *q.stride()[:2],
        *entries.stride()[:3],
        table.stride(0),
        table.shape[1],
        sequences,
        heads,
        window,
        rule.sinks,
        scale,
    )
    shape: dict[str, Any] = {
        "D": dim,
        "BD": max(sizes.power_of_two(dim), 16),
        "GROUP": group,
        "SP": sizes.power_of_two(sequences),
        "BLOCK": rule.block,
        "PAGE": candidates.page_size,
        "SLOTS": slots,
        # Products in fp32: bounds spill with four warps or 32 blocks, a wide covariance with four.
        "num_warps": 8 if kind == "bounds" or (kind == "full" and dim > 128) else 4,
    }
    padded = sizes.power_of_two(group)
    if kind in ("blocks", "bounds"):
        tile = max(SLICE // padded, 1)
        shape |= {
            "BG": padded,
            "BT": tile,
            "BN": SLICE if kind == "bounds" else RUN,
            "BOUNDS": kind == "bounds",
        }
        far_blocks[(sizes.most_tiles(rows, sequences, tile), kv_heads)](*args, **shape)
    else:
        full = {"SPREAD": rule.spread(dim), "ROWS": entries.shape[3] - 1}
        shape |= {"BG": max(padded, SLICE), "BR": SLICE if kind == "full" else 0}
        far_whole[(sizes.most_tiles(rows, sequences, 1), kv_heads)](*args, **full, **shape)
    return mass
