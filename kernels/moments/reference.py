"""Moments of keys and far mass in plain torch, one block and one row at a time."""

from __future__ import annotations

from itertools import pairwise
from math import inf, log

import torch

from ..select import Candidates
from ..store import PageLayout
from .rule import MomentBlocks, MomentRule


def key_moments(
    layout: PageLayout,
    k_pages: torch.Tensor,
    moments: torch.Tensor,
    done: MomentBlocks,
    rule: MomentRule,
) -> None:
    """See `saccade.kernels.moments.key_moments`."""
    size, spread = layout.page_size, rule.spread(moments.shape[4])
    for s, (first, last) in enumerate(zip(done.first.tolist(), done.last.tolist(), strict=True)):
        table = done.page_table[s].long()
        for block in range(first, last):
            oldest = max(block - spread + 1, 0)
            begin, end = max(oldest * rule.block, rule.sinks), (block + 1) * rule.block
            pages = table[oldest * rule.block // size : -(-end // size)]
            keys = layout.gather_keys(k_pages, pages)
            start = oldest * rule.block // size * size
            keys = keys[min(begin, end) - start : end - start].float()
            entry = _entry(moments, table, block, rule, size)
            prior, before = None, max(oldest * rule.block - rule.sinks, 0)
            if rule.kind != "blocks" and before:
                prior = _entry(moments, table, block - spread, rule, size), before
            _write(entry, keys, prior, rule, block)


def _write(
    entry: torch.Tensor,
    keys: torch.Tensor,
    prior: tuple[torch.Tensor, int] | None,
    rule: MomentRule,
    block: int,
) -> None:
    """entry: [Hkv, rows, d], written; keys: float32 [n, Hkv, d]; prior: an entry, and its keys."""
    entry.zero_()
    count, dim = keys.shape[0], keys.shape[2]
    if not count:
        return
    mean = keys.mean(0)
    centred = keys - mean
    rows = slice(0, 0)
    if rule.kind == "full":
        per_entry = rule.entry_rows(dim) - 1
        begin = block % rule.spread(dim) * per_entry
        rows = slice(begin, min(begin + per_entry, dim))
        second = torch.einsum("nhr,nhd->hrd", centred[..., rows], centred) / count
    else:
        second = centred.square().mean(0)[:, None]
    if prior is not None:
        old, before = prior
        gap, share = mean - old[:, 0], count / (before + count)
        product = gap[:, rows, None] * gap[:, None] if rule.kind == "full" else gap[:, None] ** 2
        known = old[:, 1 : 1 + second.shape[1]]
        second = known + (second - known) * share + product * share * (1 - share)
        mean = old[:, 0] + gap * share
    entry[:, 0], entry[:, 1 : 1 + second.shape[1]] = mean, second


def _entry(
    field: torch.Tensor, table: torch.Tensor, block: int, rule: MomentRule, page_size: int
) -> torch.Tensor:
    """[Hkv, rows, d], a view."""
    last = (block + 1) * rule.block - 1
    slot = last % page_size // rule.block if field.shape[1] > 1 else 0
    return field[table[last // page_size], slot]


def far_mass(
    q: torch.Tensor,
    entries: torch.Tensor,
    candidates: Candidates,
    rule: MomentRule,
    kind: str,
    window: int,
    scale: float,
) -> torch.Tensor:
    """See `saccade.kernels.moments.far_mass`. Computes in fp64 for q of fp64."""
    wide = torch.promote_types(q.dtype, torch.float32)
    mass = torch.full(q.shape[:2], -inf, dtype=wide)
    for s, (begin, end) in enumerate(pairwise(candidates.cu_rows.tolist())):
        table = candidates.page_table[s].long()
        for row in range(begin, end):
            border = int(candidates.positions[row]) - window + 1
            if border > rule.sinks:
                wanted = range(rule.sinks // rule.block, -(-border // rule.block))
                of = [_entry(entries, table, b, rule, candidates.page_size) for b in wanted]
                mass[row] = _row_mass(q[row].to(wide) * scale, of, rule, kind, wanted, border)
    return mass


def _row_mass(
    q: torch.Tensor,
    of_blocks: list[torch.Tensor],
    rule: MomentRule,
    kind: str,
    numbers: range,
    border: int,
) -> torch.Tensor:
    """[H] of one row's scaled q [H, d]; `of_blocks`: entries [Hkv, rows, d] of these blocks."""
    group, dim = q.shape[0] // of_blocks[0].shape[0], q.shape[1]
    if kind == "full":
        spread = rule.spread(dim)
        if len(numbers) < spread:
            return torch.full(q.shape[:1], inf)
        rows = {n % spread: e[:, 1:] for n, e in zip(numbers, of_blocks, strict=True)}
        covariance = torch.cat([rows[i] for i in range(spread)], dim=1)[:, :dim].to(q)
        covariance = covariance.repeat_interleave(group, 0)
        score = (q * of_blocks[-1][:, 0].repeat_interleave(group, 0)).sum(-1)
        score += 0.5 * torch.einsum("hi,hij,hj->h", q, covariance, q)
        return score + log(border - rule.sinks)
    if kind == "diagonal":
        of_blocks, numbers = of_blocks[-1:], range(1)
    found = torch.stack(of_blocks).to(q).repeat_interleave(group, 1)
    with_first, with_second = q, 0.5 * q.square()
    if kind == "bounds":
        with_first, with_second = q.clamp(max=0), q.clamp(min=0)
    scores = (found[:, :, 0] * with_first).sum(-1) + (found[:, :, 1] * with_second).sum(-1)
    edges = [min(max(n * rule.block, rule.sinks), border) for n in (*numbers, numbers.stop)]
    counts = torch.tensor([b - a for a, b in pairwise(edges)]).to(q)
    if kind == "diagonal":
        counts[0] = border - rule.sinks
    return (scores + counts.log()[:, None]).logsumexp(0)
