"""Selection by pooled weights on a GPU."""

from __future__ import annotations

from typing import Any

import torch

from .. import gpu
from .. import triton_sizes as sizes
from ..select import Candidates
from .rule import Entries, PooledRule

PART = 1024  # entries that one program sums: sixteen turns


def supports(
    q: torch.Tensor,
    fine: Entries,
    candidates: Candidates,
    rule: PooledRule,
    scale: float,
    coarse: Entries | None,
) -> str | None:
    """None when the kernels can serve this call, otherwise the reason."""
    if q.shape[2] > 256:
        return "more than 256 channels"
    return gpu.triton_refusal(q, fine.data, None if coarse is None else coarse.data)


def select_pooled(
    q: torch.Tensor,
    fine: Entries,
    candidates: Candidates,
    rule: PooledRule,
    scale: float,
    coarse: Entries | None,
) -> torch.Tensor:
    """See `saccade.kernels.pooled.select_pooled`. Rows go in passes whose ranks have room."""
    rows, owners = q.shape[0], fine.data.shape[2]
    ids = torch.empty((rows, owners, rule.listed), dtype=torch.int32, device=q.device)
    table, cu = candidates.page_table.contiguous(), candidates.cu_rows.contiguous()
    positions = candidates.positions.contiguous()
    blocks = -(-table.shape[1] * candidates.page_size // candidates.block)
    for first, count in sizes.passes(rows, 2 * owners * blocks):  # a rank is as wide as two scores
        last = first + count
        mine = cu if count == rows else cu.clamp(first, last) - first
        part = Candidates(
            mine, positions[first:last], table, candidates.block, candidates.page_size
        )
        keys = _ranks(q[first:last], fine, part, rule, scale, coarse, blocks)
        # No two ranks of a row are equal, so that however these are found they are the same.
        best = keys.topk(min(rule.listed, blocks)).values
        _write_lists(best, part, rule, ids[first:last])
    return ids


def _ranks(
    q: torch.Tensor,
    fine: Entries,
    candidates: Candidates,
    rule: PooledRule,
    scale: float,
    coarse: Entries | None,
    blocks: int,
) -> torch.Tensor:
    """int64 [T, owners, blocks]: by weight, then by number; the least number: not listed."""
    from .triton_kernel import rank_blocks

    rows, heads, dim = q.shape
    owners, table = fine.data.shape[2], candidates.page_table
    group, sequences = heads // owners, table.shape[0]
    size, probability = sizes.pooled(q.dtype, gpu.capability(q)), rule.weight == "probability"
    padded = sizes.power_of_two(group)
    shape: dict[str, Any] = {
        "D": dim,
        "BD": max(sizes.power_of_two(dim), 16),
        "GROUP": group,
        "BG": padded,
        "BT": max(size.rows // padded, 1),
        "SP": sizes.power_of_two(sequences),
        "SIZE": fine.size,
        "STRIDE": fine.stride,
        "SLOTS": fine.data.shape[1],
        "PAGE": candidates.page_size,
        "UPCAST": gpu.upcast(q),
        "num_warps": size.warps,
        "num_stages": size.stages,
    }
    tiles = sizes.most_tiles(rows, sequences, shape["BT"])
    factor = scale * sizes.LOG2E if probability else scale
    lse = q.new_empty((0, rows, heads), dtype=torch.float32)
    if probability:
        lse = _sums(q, fine, candidates, factor, coarse, tiles, size.keys, shape)
    keys = torch.empty((rows, owners, blocks), dtype=torch.int64, device=q.device)
    rank_blocks[(tiles, owners, -(-blocks // size.keys))](
        q,
        fine.data,
        table,
        candidates.cu_rows,
        candidates.positions,
        lse,
        keys,
        *q.stride()[:2],
        *fine.data.stride()[:3],
        table.stride(0),
        rows * heads,
        table.shape[1],
        sequences,
        heads,
        owners,
        lse.shape[0],
        blocks,
        rule.first,
        rule.recent,
        factor,
        BLOCK=candidates.block,
        BB=size.keys,
        PROBABILITY=probability,
        **shape,
    )
    return keys


def _sums(
    q: torch.Tensor,
    fine: Entries,
    candidates: Candidates,
    factor: float,
    coarse: Entries | None,
    tiles: int,
    keys: int,
    shape: dict[str, Any],
) -> torch.Tensor:
    """float32 [parts, T, H]: log-sum-exp of each part of the entries, exponents of 2."""
    from .triton_kernel import sum_rows

    rows, heads, _ = q.shape
    table, owners = candidates.page_table, fine.data.shape[2]
    over = coarse or Entries(fine.data, 0, 1)
    tokens = table.shape[1] * candidates.page_size
    # Rows that see no coarse entry see few of the fine.
    spans = [(coarse.size, fine.stride), (tokens, coarse.stride)] if coarse else []
    parts = max(
        -(-length // (stride * PART)) for length, stride in spans or [(tokens, fine.stride)]
    )
    lse = q.new_empty((parts, rows, heads), dtype=torch.float32)
    sum_rows[(tiles, owners, parts)](
        q,
        fine.data,
        over.data,
        table,
        candidates.cu_rows,
        candidates.positions,
        lse,
        *q.stride()[:2],
        *fine.data.stride()[:3],
        *over.data.stride()[:3],
        table.stride(0),
        rows * heads,
        table.shape[1],
        table.shape[0],
        heads,
        factor,
        COARSE_SIZE=over.size,
        COARSE_STRIDE=over.stride,
        COARSE_SLOTS=over.data.shape[1],
        BN=keys,
        PART=PART,
        **shape,
    )
    return lse


def _write_lists(
    best: torch.Tensor, candidates: Candidates, rule: PooledRule, ids: torch.Tensor
) -> None:
    from .triton_kernel import write_lists

    rows, owners, listed = ids.shape
    width = max(sizes.power_of_two(listed), 2)
    tile = sizes.rows_of(width)
    write_lists[(-(-rows * owners // tile),)](
        best,
        candidates.positions,
        ids,
        rows * owners,
        owners,
        best.shape[2],
        listed,
        KEEP_OWN=rule.recent == 0,
        BLOCK=candidates.block,
        BR=tile,
        WIDTH=width,
        num_warps=4,
    )
