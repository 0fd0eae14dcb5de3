"""Block selection in plain torch: all scores, then a stable sort."""

from __future__ import annotations

from itertools import pairwise

import torch

from .candidates import Candidates


def select_blocks(
    q: torch.Tensor, means: torch.Tensor, candidates: Candidates, topk: int
) -> torch.Tensor:
    """See `saccade.kernels.select.select_blocks`."""
    heads, group = q.shape[1], q.shape[1] // means.shape[2]
    ids = torch.full((q.shape[0], heads, topk + 1), -1, dtype=torch.int32)
    for s, (begin, end) in enumerate(pairwise(candidates.cu_rows.tolist())):
        if begin == end:
            continue
        own = candidates.positions[begin:end] // candidates.block
        blocks = int(own.max())
        scores = _scores(q[begin:end], means, candidates, s, blocks, group)
        block = torch.arange(blocks)
        scores = scores.masked_fill(block >= own[:, None, None], -torch.inf)
        # Stable, and from the last block to the first: equal scores keep the later block first.
        order = scores.flip(-1).sort(dim=-1, descending=True, stable=True).indices
        best = (blocks - 1 - order)[..., :topk]
        chosen = scores.gather(-1, best) > -torch.inf
        width = best.shape[-1]
        rows = torch.full((end - begin, heads, topk + 1), blocks + 1)
        rows[..., :width] = torch.where(chosen, best, blocks + 1)
        rows[..., topk] = own[:, None]
        rows = rows.sort(dim=-1).values
        ids[begin:end] = torch.where(rows > blocks, -1, rows).int()
    return ids


def _scores(
    q: torch.Tensor,
    means: torch.Tensor,
    candidates: Candidates,
    sequence: int,
    blocks: int,
    group: int,
) -> torch.Tensor:
    """float32 [rows, H, blocks]; NaN becomes -inf."""
    last = (torch.arange(blocks) + 1) * candidates.block - 1
    page = candidates.page_table[sequence, last // candidates.page_size].long()
    slot = last % candidates.page_size // candidates.block if means.shape[1] > 1 else last * 0
    table = means[page.clamp(min=0), slot].repeat_interleave(group, dim=1).float()
    scores = torch.einsum("thd,bhd->thb", q.float(), table)
    missing = (page < 0)[None, None].expand_as(scores)
    return scores.masked_fill(missing | scores.isnan(), -torch.inf)
