"""Paged attention in plain torch: gather the pages, build the mask, one softmax. The oracle of
every kernel.
"""

from __future__ import annotations

from itertools import pairwise

import torch

from .call import AttendCall
from .keys import BlockLists, Keys


def block_mask(blocks: BlockLists, rows: slice, heads: int, length: int) -> torch.Tensor:
    """bool [heads, rows, length]: the keys that the block lists of these rows hold."""
    lists = rows if blocks.list_of_row is None else blocks.list_of_row[rows].long()
    ids = blocks.ids[lists].long()
    total = -(-length // blocks.block)
    held = torch.zeros((*ids.shape[:2], total + 1), dtype=torch.bool)
    held.scatter_(2, torch.where((ids < 0) | (ids >= total), total, ids), True)
    per_key = held[..., :total].repeat_interleave(blocks.block, dim=2)[..., :length]
    return per_key.repeat_interleave(heads // ids.shape[1], dim=1).transpose(0, 1)


def visible(keys: Keys, rows: slice, heads: int, length: int) -> torch.Tensor:
    """bool [heads or 1, rows, length]: which of `length` keys each of these rows sees."""
    position = keys.positions[rows, None]
    j = torch.arange(length)[None]
    hi = position + 1 if keys.hi is None else keys.hi[rows, None]
    mask = j < hi
    if keys.lo is not None:
        mask &= j >= keys.lo[rows, None]
    if keys.window is not None:
        mask &= (position - j < keys.window) | (j < keys.sinks)
    if keys.blocks is None:
        return mask[None]
    return mask[None] & block_mask(keys.blocks, rows, heads, length)


def softmax_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor,
    scale: float,
    softcap: float | None,
    sink_logits: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(out [T, H, dv], lse [T, H]) of q [T, H, d], k [L, H, d], v [L, H, dv] under mask [H or 1, T,
    L].
    """
    scores = torch.einsum("thd,lhd->htl", q, k) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~mask, -torch.inf)
    if sink_logits is not None:
        sink = sink_logits.to(scores)[:, None, None].expand(-1, scores.shape[1], 1)
        scores = torch.cat([scores, sink], dim=-1)
    lse = torch.logsumexp(scores, dim=-1)
    weights = torch.exp(scores - torch.where(lse == -torch.inf, 0.0, lse)[..., None])[
        ..., : k.shape[0]
    ]
    return weighted_sum(weights, v, mask), lse.T


def weighted_sum(weights: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """[T, H, dv] of weights [H, T, L] and v [L, H, dv]: what a row does not see cannot reach it,
    not even a NaN, which a weight of 0 would let through.
    """
    finite = v.isfinite()
    out = torch.einsum("htl,lhd->thd", weights, v.where(finite, 0.0))
    if finite.all():
        return out
    sees = torch.einsum("htl,lhd->thd", mask.expand_as(weights).to(v), (~finite).to(v))
    return out.masked_fill(sees > 0, torch.nan)


def attend(call: AttendCall) -> tuple[torch.Tensor, torch.Tensor]:
    """See `saccade.kernels.attend.attend`. Computes in fp32, or in fp64 when `out_dtype` is
    float64.
    """
    layout, q, keys, value_dim = call.layout, call.q, call.keys, call.value_dim
    wide = torch.promote_types(call.out_dtype, torch.float32)
    out = torch.zeros((*q.shape[:2], call.v_dim), dtype=call.out_dtype)
    lse = torch.full(q.shape[:2], -torch.inf)
    bounds = keys.cu_rows.tolist()
    for s, (begin, end) in enumerate(pairwise(bounds)):
        if begin == end:
            continue
        rows = slice(begin, end)
        last = keys.positions[rows].max() + 1 if keys.hi is None else keys.hi[rows].max()
        length = max(int(last), 0)
        table = keys.page_table[s, : -(-length // layout.page_size)].long().clamp(min=0)
        k, v = layout.gather(call.k_pages, call.v_pages, table)
        v = v if value_dim is None else k[..., :value_dim]
        k = k[:length].to(wide).repeat_interleave(call.group, dim=1)
        v = v[:length].to(wide).repeat_interleave(call.group, dim=1)
        mask = visible(keys, rows, call.heads, length)
        o, weight = softmax_attention(
            q[rows].to(wide), k, v, mask, call.scale, call.softcap, call.sink_logits
        )
        out[rows], lse[rows] = o.to(out.dtype), weight.float()
    return out, lse
