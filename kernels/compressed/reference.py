"""Attention over summaries in plain torch, one sequence at a time."""

from __future__ import annotations

from itertools import pairwise

import torch

from ..select import Candidates
from .call import CompressedCall
from .lists import ListRule, Spans


def compressed(call: CompressedCall) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `saccade.kernels.compressed.compressed`. Computes in fp32 (in fp64 for fp64 input)."""
    q, candidates, rule, spans = call.q, call.candidates, call.rule, call.spans
    wide = torch.promote_types(q.dtype, torch.float32)
    out = torch.zeros((*q.shape[:2], call.value_dim), dtype=q.dtype)
    lse = torch.full(q.shape[:2], -torch.inf)
    ids = torch.full((q.shape[0], call.owners, call.listed), -1, dtype=torch.int32)
    for s, (begin, end) in enumerate(pairwise(candidates.cu_rows.tolist())):
        if begin == end:
            continue
        rows, position = slice(begin, end), candidates.positions[begin:end]
        count = spans.complete(int(position.max()) + 1)
        table, present = _table(call, s, count)
        table = table.to(wide).repeat_interleave(call.group, dim=1)
        keys = table[..., : q.shape[2]]
        scores = torch.einsum("thd,bhd->htb", q[rows].to(wide), keys) * call.scale
        complete = torch.arange(count) * spans.stride + spans.length <= position[:, None] + 1
        scores = scores.masked_fill(~(complete & present), -torch.inf)
        weight = torch.logsumexp(scores, dim=-1) if count else lse[rows].T.to(wide)
        shares = torch.exp(scores - weight.where(weight > -torch.inf, 0.0)[..., None])
        values = table[..., call.value_first :][..., : call.value_dim]
        out[rows] = torch.einsum("htb,bhd->thd", shares, values).to(q.dtype)
        lse[rows] = weight.T.float()
        if rule is not None:
            mass = shares.view(call.owners, call.group, *shares.shape[1:]).sum(1).transpose(0, 1)
            blocks = block_weights(
                mass, int(position.max()) // candidates.block + 1, candidates, spans
            )
            ids[rows] = _lists(blocks, position, candidates.block, rule)
    return out, lse, ids


def _table(call: CompressedCall, sequence: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Entries [count, G, width] of a sequence, and which of them have a page."""
    entries, candidates, spans = call.entries, call.candidates, call.spans
    last = torch.arange(count) * spans.stride + spans.length - 1
    page = candidates.page_table[sequence, last // candidates.page_size].long()
    slot = last % candidates.page_size // spans.stride if entries.shape[1] > 1 else last * 0
    return entries[page.clamp(min=0), slot], page >= 0


def block_weights(
    mass: torch.Tensor, blocks: int, candidates: Candidates, spans: Spans
) -> torch.Tensor:
    """Weights [..., blocks] of the first blocks, from those of the entries [..., n]."""
    first = torch.arange(mass.shape[-1])[:, None] * spans.stride
    begin = torch.arange(blocks) * candidates.block
    shared = torch.minimum(first + spans.length, begin + candidates.block)
    shared = (shared - torch.maximum(first, begin)).clamp(min=0)  # tokens, [n, blocks]
    if spans.pool == "sum":
        return mass @ (shared // spans.stride).to(mass)
    found = mass[..., None] * (shared > 0)
    return found.amax(-2) if mass.shape[-1] else found.sum(-2)


def _lists(
    weight: torch.Tensor, position: torch.Tensor, block: int, rule: ListRule
) -> torch.Tensor:
    """int32 [T, G, listed] from the weights [T, G, blocks]."""
    own = position // block
    total = weight.shape[-1]
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
