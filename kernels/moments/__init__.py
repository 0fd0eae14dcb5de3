"""First and second moments of keys, kept as page fields, and what they say of far keys' mass."""

from __future__ import annotations

from math import inf

import torch

from ..ops import Implementation, Op
from ..select import Candidates
from ..store import PageLayout
from ..summarize import slots_per_page
from . import cpu, reference, triton
from .rule import KINDS, MASS_KINDS, MomentBlocks, MomentRule, moment_blocks

__all__ = [
    "FAR_MASS",
    "KEY_MOMENTS",
    "KINDS",
    "MASS_KINDS",
    "MomentBlocks",
    "MomentRule",
    "far_mass",
    "key_moments",
    "moment_blocks",
]

KEY_MOMENTS = Op(
    "key_moments",
    reference.key_moments,
    (
        Implementation("cpu", cpu.key_moments, cpu.supports),
        Implementation("triton", triton.key_moments, triton.supports),
    ),
)
FAR_MASS = Op(
    "far_mass",
    reference.far_mass,
    (
        Implementation("cpu", cpu.far_mass, cpu.weighs),
        Implementation("triton", triton.far_mass, triton.weighs),
    ),
)


def key_moments(
    layout: PageLayout,
    k_pages: torch.Tensor,
    moments: torch.Tensor,
    done: MomentBlocks,
    rule: MomentRule,
) -> None:
    """Writes the moments of every block in `done`, in the page of its last token.

    moments: float32 [pages, slots, Hkv, rule.entry_rows(d), d]. Computed from the pages, and from
    the entry rule.spread(d) blocks before, in a fixed order, so that they are the same however the
    prompt was cut. Raises ValueError when shapes or dtypes disagree.
    """
    dim = layout.key_dim(k_pages)
    slots = slots_per_page(rule.block, layout.page_size)
    want = (k_pages.shape[0], slots, k_pages.shape[1], rule.entry_rows(dim), dim)
    if moments.shape != want or moments.dtype != torch.float32:
        raise ValueError(
            f"key_moments: moments must be float32 {want}, "
            f"got {moments.dtype} {tuple(moments.shape)}"
        )
    if done.most:  # most decode steps complete none
        KEY_MOMENTS(layout, k_pages, moments, done, rule)


def far_mass(
    q: torch.Tensor,
    entries: torch.Tensor,
    candidates: Candidates,
    rule: MomentRule,
    kind: str,
    window: int,
    scale: float,
) -> torch.Tensor:
    """The logarithm of the summed exp(scale <q, k>) over each row's far keys: those from rule.sinks
    on that lie `window` or more before the row. float32 [T, H].

    By a normal distribution of the scores with the keys' moments: one for every block (kind
    "blocks") or one for all ("diagonal", "full"); or, kind "bounds", no less than it can be: by the
    least and the greatest keys of blocks, as `bounds.key_bounds` writes them, of q's dtype. The
    block where the window begins counts by its share. -inf: no far keys. inf: not known yet (a
    covariance needs rule.spread(d) blocks). NaN where numbers or pages are missing.
    q: [T, H, d]; entries: the page field. Raises ValueError when shapes or dtypes disagree.
    """
    rows = 2 if kind == "bounds" else rule.entry_rows(q.shape[2])
    if q.ndim != 3 or entries.ndim != 5 or entries.shape[3:] != (rows, q.shape[2]):
        raise ValueError(
            f"far_mass: q {tuple(q.shape)} and entries {tuple(entries.shape)} do not fit {kind!r}"
        )
    if kind not in MASS_KINDS or (kind != "bounds" and kind != rule.kind):
        raise ValueError(f"far_mass: {kind!r} is not 'bounds', nor what the entries are")
    if entries.dtype != (q.dtype if kind == "bounds" else torch.float32):
        raise ValueError(f"far_mass: entries are {entries.dtype}, unfit for {kind!r} and {q.dtype}")
    if q.shape[1] % entries.shape[2] or candidates.positions.shape != q.shape[:1]:
        raise ValueError("far_mass: heads must be a multiple of KV heads, positions [T]")
    if candidates.fault is not None:
        raise ValueError(f"far_mass: {candidates.fault}")
    if candidates.block != rule.block or window < rule.block or not 0.0 < scale < inf:
        raise ValueError(
            f"far_mass: the window of {window} must be no shorter than a block of {rule.block}, "
            f"scale positive, got {scale}"
        )
    mass: torch.Tensor = FAR_MASS(q, entries, candidates, rule, kind, window, scale)
    return mass
