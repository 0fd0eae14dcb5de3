"""Attention over lists of keys that the rows themselves change as they attend."""

from __future__ import annotations

import torch

from ..attend import Keys, attend
from ..ops import Implementation, Op
from ..store import PageLayout, write_pages
from . import cpu, reference, triton
from .call import TurnsCall
from .triton import gpu_scratch_bytes

__all__ = ["ATTEND_TURNS", "TurnsCall", "attend_turns", "gpu_scratch_bytes"]

ATTEND_TURNS = Op(
    "attend_turns",
    reference.attend_turns,
    (
        Implementation("cpu", cpu.attend_turns, cpu.supports),
        Implementation("triton", triton.attend_turns, triton.supports),
    ),
)


def attend_turns(
    layout: PageLayout,
    rows: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    pages: tuple[torch.Tensor, torch.Tensor],
    keys: Keys,
    slots: torch.Tensor,
    replaces: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """float32 [N, 1, dv]: row after row, k and v go to their slot, and then q attends.

    rows: q, k [N, 1, d] and v [N, 1, dv]; pages: K and V of one head, as `layout` allocates them.
    Every sequence of `keys` is a list, in pages that no other has, of which a row sees the first
    keys.hi. slots: int64 [N], page id * page size + offset; replaces: bool [N]: another token's
    key was there, which the rows before have read; else the slot lies beyond what they see.
    Raises ValueError when shapes or dtypes disagree.
    """
    q, k, v = rows
    count = q.shape[0]
    if q.ndim != 3 or q.shape[1] != 1 or k.shape != q.shape or v.shape[:2] != q.shape[:2]:
        raise ValueError(
            f"attend_turns: q {tuple(q.shape)} and k {tuple(k.shape)} must be [N, 1, d] and "
            f"v {tuple(v.shape)} [N, 1, dv]"
        )
    if layout.dims(*pages) != (k.shape[2], v.shape[2]) or any(each.shape[1] != 1 for each in pages):
        raise ValueError("attend_turns: pages must be of one head and of the rows' channels")
    if not q.dtype == k.dtype == v.dtype == pages[0].dtype:
        raise ValueError("attend_turns: q, k, v and pages must share a dtype")
    if slots.shape != (count,) or replaces.shape != (count,) or replaces.dtype != torch.bool:
        raise ValueError(f"attend_turns: slots and replaces (bool) must be [{count}]")
    if keys.hi is None or keys.hi.shape != (count,) or keys.positions.shape != (count,):
        raise ValueError(f"attend_turns: keys need positions and hi of {count} rows")
    if not bool(replaces.any()):  # all at once
        write_pages(layout, *pages, k, v, slots)
        return attend(layout, q, *pages, keys, scale, out_dtype=torch.float32)[0]
    out: torch.Tensor = ATTEND_TURNS(TurnsCall(layout, rows, pages, keys, slots, replaces, scale))
    return out
