"""Key bounds and selection by them in plain torch: all bounds, then a stable sort."""

from __future__ import annotations

from itertools import pairwise

import torch

from ..compressed.lists import ListRule
from ..select import Candidates
from ..store import PageLayout
from ..summarize import CompletedBlocks, slots_per_page


def key_bounds(
    layout: PageLayout, k_pages: torch.Tensor, bounds: torch.Tensor, done: CompletedBlocks
) -> None:
    """See `saccade.kernels.bounds.key_bounds`."""
    slots = slots_per_page(done.block, layout.page_size)
    flat = bounds.flatten(0, 1)
    for members, home in zip(done.members, done.home.tolist(), strict=True):
        keys = layout.gather_keys(k_pages, members)
        begin = home % slots * done.block
        least, most = keys[begin : begin + done.block].aminmax(dim=0)
        flat[home] = torch.stack([least, most], dim=1)


def select_bounded(
    q: torch.Tensor,
    bounds: torch.Tensor,
    candidates: Candidates,
    rule: ListRule,
    reduction: str,
) -> torch.Tensor:
    """See `saccade.kernels.bounds.select_bounded`."""
    ids = torch.full((q.shape[0], bounds.shape[2], rule.listed), -1, dtype=torch.int32)
    for s, (begin, end) in enumerate(pairwise(candidates.cu_rows.tolist())):
        if begin == end:
            continue
        own = candidates.positions[begin:end] // candidates.block
        scores = upper_bounds(q[begin:end], bounds, candidates, s, int(own.max()))
        group = q.shape[1] // bounds.shape[2]
        grouped = scores.view(end - begin, bounds.shape[2], group, scores.shape[2])
        reduced = grouped.amax(2) if reduction == "max" else grouped.sum(2)
        ids[begin:end] = _lists(reduced, own, rule)
    return ids


def upper_bounds(
    q: torch.Tensor, bounds: torch.Tensor, candidates: Candidates, sequence: int, blocks: int
) -> torch.Tensor:
    """float32 [rows, H, blocks]; NaN where the block has no page."""
    last = (torch.arange(blocks) + 1) * candidates.block - 1
    page = candidates.page_table[sequence, last // candidates.page_size].long()
    slot = last % candidates.page_size // candidates.block if bounds.shape[1] > 1 else last * 0
    group = q.shape[1] // bounds.shape[2]
    table = bounds[page.clamp(min=0), slot].repeat_interleave(group, dim=1).float()
    least, most = table[:, :, 0], table[:, :, 1]
    scores = torch.einsum("thd,bhd->thb", q.float().clamp(min=0), most)
    scores += torch.einsum("thd,bhd->thb", q.float().clamp(max=0), least)
    return scores.masked_fill((page < 0)[None, None], torch.nan)


def _lists(scores: torch.Tensor, own: torch.Tensor, rule: ListRule) -> torch.Tensor:
    """int32 [T, Hkv, listed] from scores [T, Hkv, blocks]."""
    total = int(own.max()) + 1
    j = torch.arange(total)
    weight = torch.nn.functional.pad(scores, (0, total - scores.shape[-1]), value=-torch.inf)
    weight = weight.masked_fill(weight.isnan(), -torch.inf)
    weight = weight.clamp(max=torch.finfo(weight.dtype).max)  # none is above a forced block
    forced = (j < rule.first) | (j > own[:, None] - rule.recent)
    weight = weight.masked_fill(forced[:, None], torch.inf)
    weight = weight.masked_fill((j > own[:, None])[:, None], -torch.inf)
    # Stable, and from the last block to the first: equal scores keep the later block first.
    order = weight.flip(-1).sort(dim=-1, descending=True, stable=True).indices
    best = (total - 1 - order)[..., : rule.listed]
    taken = weight.gather(-1, best) > -torch.inf
    ids = torch.where(taken, best, total).sort(dim=-1).values
    ids = torch.where(ids == total, -1, ids).int()
    return torch.nn.functional.pad(ids, (0, rule.listed - ids.shape[-1]), value=-1)
