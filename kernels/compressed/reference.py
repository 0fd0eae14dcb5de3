"""Attention over summaries in plain torch, one sequence at a time."""

from __future__ import annotations

from itertools import pairwise

import torch

from ..select import Candidates
from .lists import ListRule


def compressed(
    q: torch.Tensor,
    entries: torch.Tensor,
    candidates: Candidates,
    rule: ListRule,
    scale: float,
    value_dim: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `saccade.kernels.compressed.compressed`. Computes in fp32 (in fp64 for fp64 input)."""
    heads, owners = q.shape[1], entries.shape[2]
    wide = torch.promote_types(q.dtype, torch.float32)
    out = torch.zeros((*q.shape[:2], value_dim), dtype=q.dtype)
    lse = torch.full(q.shape[:2], -torch.inf)
    ids = torch.full((q.shape[0], owners, rule.listed), -1, dtype=torch.int32)
    for s, (begin, end) in enumerate(pairwise(candidates.cu_rows.tolist())):
        if begin == end:
            continue
        rows, position = slice(begin, end), candidates.positions[begin:end]
        blocks = int(position.max() + 1) // candidates.block
        table, present = _table(entries, candidates, s, blocks)
        k = table.to(wide).repeat_interleave(heads // owners, dim=1)
        scores = torch.einsum("thd,bhd->htb", q[rows].to(wide), k) * scale
        complete = torch.arange(blocks) < (position[:, None] + 1) // candidates.block
        scores = scores.masked_fill(~(complete & present), -torch.inf)
        weight = torch.logsumexp(scores, dim=-1) if blocks else lse[rows].T.to(wide)
        shares = torch.exp(scores - weight.where(weight > -torch.inf, 0.0)[..., None])
        out[rows] = torch.einsum("htb,bhd->thd", shares, k[..., :value_dim]).to(q.dtype)
        lse[rows] = weight.T.float()
        mass = shares.view(owners, heads // owners, *shares.shape[1:]).sum(1).transpose(0, 1)
        ids[rows] = _lists(mass, position, candidates.block, rule)
    return out, lse, ids


def _table(
    entries: torch.Tensor, candidates: Candidates, sequence: int, blocks: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Summaries [blocks, G, d] of a sequence, and which of them have a page."""
    last = (torch.arange(blocks) + 1) * candidates.block - 1
    page = candidates.page_table[sequence, last // candidates.page_size].long()
    slot = last % candidates.page_size // candidates.block if entries.shape[1] > 1 else last * 0
    return entries[page.clamp(min=0), slot], page >= 0


def _lists(mass: torch.Tensor, position: torch.Tensor, block: int, rule: ListRule) -> torch.Tensor:
    """int32 [T, G, listed] from the weights [T, G, blocks]."""
    own = position // block
    total = int(own.max()) + 1
    weight = torch.full((*mass.shape[:2], total), -1.0, dtype=mass.dtype)
    weight[..., : mass.shape[2]] = mass
    j = torch.arange(total)
    forced = (j < rule.first) | (j > own[:, None] - rule.recent)
    weight = weight.masked_fill(forced[:, None], torch.inf)
    unfit = (j > own[:, None]) | (position[:, None] % rule.every != 0)
    weight = weight.masked_fill(unfit[:, None] | weight.isnan(), -torch.inf)
    # Stable, and from the last block to the first: equal weights keep the later block first.
    order = weight.flip(-1).sort(dim=-1, descending=True, stable=True).indices
    best = (total - 1 - order)[..., : rule.listed]
    taken = weight.gather(-1, best) > -torch.inf
    ids = torch.where(taken, best, total).sort(dim=-1).values
    ids = torch.where(ids == total, -1, ids).int()
    return torch.nn.functional.pad(ids, (0, rule.listed - ids.shape[-1]), value=-1)
