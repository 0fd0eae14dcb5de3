"""Selection by key scores in plain torch, one sequence at a time."""

from __future__ import annotations

from itertools import pairwise

import torch

from ..select import Candidates
from ..store import PageLayout
from .rule import KeyRule


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
    heads, group = q.shape[1], q.shape[1] // k_pages.shape[1]
    ids = torch.full((q.shape[0], rule.owners(heads), rule.listed), -1, dtype=torch.int32)
    for s, (begin, end) in enumerate(pairwise(candidates.cu_rows.tolist())):
        if begin == end:
            continue
        rows, positions = slice(begin, end), candidates.positions[begin:end]
        blocks = int(positions.max()) // candidates.block + 1
        pages = candidates.page_table[s, : -(-blocks * candidates.block // layout.page_size)]
        keys = layout.gather_keys(k_pages, pages.long().clamp(min=0))
        # The table may end within the last block.
        missing = blocks * candidates.block - keys.shape[0]
        keys = torch.nn.functional.pad(keys, (0, 0, 0, 0, 0, max(missing, 0)))
        keys = keys[: blocks * candidates.block].float().repeat_interleave(group, dim=1)
        scores = torch.einsum("thd,lhd->thl", q[rows].float(), keys) * scale
        if rule.union == "mean_prob":
            scores = (scores - lse[rows, :, None]).exp().sum(1, keepdim=True)
        key = torch.arange(keys.shape[0])
        absent = (pages < 0).repeat_interleave(layout.page_size)
        absent = torch.nn.functional.pad(absent, (0, max(missing, 0)), value=True)[: len(key)]
        unseen = (key > positions[:, None]) | absent
        scores = scores.masked_fill(unseen[:, None] | scores.isnan(), -torch.inf)
        best = scores.view(*scores.shape[:2], blocks, candidates.block).amax(-1)
        for row, own in enumerate((positions // candidates.block).tolist()):
            for owner, found in enumerate(_lists(best[row, :, : own + 1], own, rule)):
                ids[begin + row, owner, : len(found)] = torch.tensor(found, dtype=torch.int32)
    return ids


def _lists(scores: torch.Tensor, own: int, rule: KeyRule) -> list[list[int]]:
    """Lists of one row from the block scores [owners of scores, own + 1]."""
    head = min(rule.first, own + 1)
    tail = max(own + 1 - rule.recent, head)
    forced = [*range(head), *range(tail, own + 1)]
    count = rule.listed - len(forced)
    ranked = [
        sorted(
            (j for j in range(head, tail) if each[j] > -torch.inf), key=lambda j: (-each[j], -j)
        )[:count]
        for each in scores.tolist()
    ]
    if rule.union == "rank_major":
        depth = range(max(map(len, ranked)))
        order = [each[rank] for rank in depth for each in ranked if rank < len(each)]
        ranked = [list(dict.fromkeys(order))[:count]]
    return [sorted(forced + each) for each in ranked]
