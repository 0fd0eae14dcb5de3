"""Selection by pooled weights in plain torch, one sequence at a time."""

from __future__ import annotations

from itertools import pairwise

import torch

from ..select import Candidates
from .rule import Entries, PooledRule

_MOST = 120.0 * 0.6931471805599453  # a coarse lse may lie this far below a score, no further


def select_pooled(
    q: torch.Tensor,
    fine: Entries,
    candidates: Candidates,
    rule: PooledRule,
    scale: float,
    coarse: Entries | None,
) -> torch.Tensor:
    """See `saccade.kernels.pooled.select_pooled`."""
    ids = torch.full((q.shape[0], fine.data.shape[2], rule.listed), -1, dtype=torch.int32)
    for s, (begin, end) in enumerate(pairwise(candidates.cu_rows.tolist())):
        if begin == end:
            continue
        rows, position = slice(begin, end), candidates.positions[begin:end]
        scores = _scores(q[rows], fine, candidates, s, position, scale)
        weights = scores.relu() if rule.weight == "relu" else scores
        if rule.weight == "probability":
            lse = _lse(scores)
            if coarse is not None and int(_complete(coarse, position).max()) > 0:
                over = _lse(_scores(q[rows], coarse, candidates, s, position, scale))
                lse = torch.where(_complete(coarse, position)[:, None] > 0, over, lse)
            weights = (scores - lse[..., None]).clamp(max=_MOST).exp()
        seen = torch.arange(scores.shape[2]) < _complete(fine, position)[:, None]
        owners = fine.data.shape[2]
        sums = weights.reshape(len(weights), owners, q.shape[1] // owners, weights.shape[2]).sum(2)
        sums = sums.masked_fill(~seen[:, None] | sums.isnan(), -torch.inf)
        ids[rows] = _lists(_pooled(sums, fine, candidates.block, position), candidates, rule, rows)
    return ids


def _complete(entries: Entries, position: torch.Tensor) -> torch.Tensor:
    """Entries whose tokens a row at this position has all seen."""
    count = (position + 1 - entries.size) // entries.stride + 1
    return count.clamp(min=0)


def _scores(
    q: torch.Tensor,
    entries: Entries,
    candidates: Candidates,
    sequence: int,
    position: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """float32 [rows, H, entries]; -inf where a row does not see the entry, NaN without a page."""
    complete = _complete(entries, position)
    number = torch.arange(int(complete.max()))
    last = number * entries.stride + entries.size - 1
    page = candidates.page_table[sequence, last // candidates.page_size].long()
    slots = entries.data.shape[1]
    slot = last % candidates.page_size // entries.stride if slots > 1 else last * 0
    table = entries.data[page.clamp(min=0), slot].float()
    table = table.repeat_interleave(q.shape[1] // table.shape[1], dim=1)
    scores = torch.einsum("thd,bhd->thb", q.float(), table) * scale
    scores = scores.masked_fill((page < 0)[None, None], torch.nan)
    return scores.masked_fill((number >= complete[:, None])[:, None], -torch.inf)


def _lse(scores: torch.Tensor) -> torch.Tensor:
    """float32 [rows, H], NaN aside; -inf over nothing."""
    known = scores.masked_fill(scores.isnan(), -torch.inf)
    if scores.shape[2] == 0:
        return torch.full(scores.shape[:2], -torch.inf)
    return torch.logsumexp(known, dim=-1)


def _pooled(sums: torch.Tensor, fine: Entries, block: int, position: torch.Tensor) -> torch.Tensor:
    """float32 [rows, owners, blocks] up to the last row's own block: the most that overlaps it."""
    pooled = torch.full((*sums.shape[:2], int(position.max()) // block + 1), -torch.inf)
    for entry in range(sums.shape[2]):
        first = entry * fine.stride
        for b in range(first // block, (first + fine.size - 1) // block + 1):
            if b < pooled.shape[2]:
                pooled[..., b] = torch.maximum(pooled[..., b], sums[..., entry])
    return pooled


def _lists(
    weight: torch.Tensor, candidates: Candidates, rule: PooledRule, rows: slice
) -> torch.Tensor:
    """int32 [rows, owners, listed] from the weights [rows, owners, blocks]; -inf: not chosen."""
    position = candidates.positions[rows]
    own, j = position // candidates.block, torch.arange(weight.shape[2])
    unfinished = ((position + 1) % candidates.block != 0).long()
    recent = torch.full_like(own, rule.recent) if rule.recent else unfinished
    forced = (j < rule.first) | (j > (own - recent)[:, None])
    weight = weight.masked_fill(forced[:, None], torch.inf)
    weight = weight.masked_fill((j > own[:, None])[:, None], -torch.inf)
    # Stable, and from the last block to the first: equal weights keep the later block first.
    order = weight.flip(-1).sort(dim=-1, descending=True, stable=True).indices
    best = (weight.shape[2] - 1 - order)[..., : rule.listed]
    taken = weight.gather(-1, best) > -torch.inf
    if not rule.recent:  # the place of the unfinished block is no other's
        taken &= torch.arange(best.shape[2]) < (rule.listed - 1 + unfinished)[:, None, None]
    total = weight.shape[2]
    ids = torch.where(taken, best, total).sort(dim=-1).values
    ids = torch.where(ids == total, -1, ids).int()
    return torch.nn.functional.pad(ids, (0, rule.listed - ids.shape[-1]), value=-1)
