"""Attention over summaries on a GPU."""

from __future__ import annotations

import torch

from .. import gpu
from .. import triton_sizes as sizes
from ..select import Candidates
from .lists import ListRule, Spans

MOST = 64  # blocks that a row's keys are sorted for in registers


def supports(
    q: torch.Tensor,
    entries: torch.Tensor,
    candidates: Candidates,
    rule: ListRule | None,
    scale: float,
    value_dim: int,
    spans: Spans,
    value_first: int,
) -> str | None:
    """None when the kernel can serve this call, otherwise the reason."""
    if rule is not None and rule.listed > MOST:
        return f"lists of more than {MOST} blocks"
    if q.shape[2] > 768 or value_dim > 512:
        return "more than 768 channels of keys or 512 of values"
    return gpu.triton_refusal(q, entries)


def compressed(
    q: torch.Tensor,
    entries: torch.Tensor,
    candidates: Candidates,
    rule: ListRule | None,
    scale: float,
    value_dim: int,
    spans: Spans,
    value_first: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `saccade.kernels.compressed.compressed`."""
    from .triton_kernel import compressed_rows

    rows, heads, dim = q.shape
    owners, table = entries.shape[2], candidates.page_table.contiguous()
    chosen = rule or ListRule(1)
    out = q.new_empty((rows, heads, value_dim))
    lse = q.new_empty((rows, heads), dtype=torch.float32)
    listed = chosen.listed if rule else 0
    ids = torch.empty((rows, owners, listed), dtype=torch.int32, device=q.device)
    if not rows:
        return out, lse, ids
    group, sequences = heads // owners, table.shape[0]
    size = sizes.coarse(listed, dim, value_dim, q.dtype, gpu.capability(q))
    padded = sizes.power_of_two(group)
    tile = max(size.rows // padded, 1)
    main, rest = sizes.split(dim)
    compressed_rows[(sizes.most_tiles(rows, sequences, tile), owners)](
        q,
        entries,
        table,
        candidates.cu_rows.contiguous(),
        candidates.positions.contiguous(),
        out,
        lse,
        ids,
        *q.stride()[:2],
        *entries.stride()[:3],
        table.stride(0),
        table.shape[1],
        sequences,
        heads,
        owners,
        listed,
        chosen.first,
        chosen.recent,
        chosen.every,
        scale * sizes.LOG2E,
        value_first,
        D=dim,
        DV=value_dim,
        BD=main,
        REST=rest,
        BDV=max(sizes.power_of_two(value_dim), 16),
        GROUP=group,
        BG=padded,
        BT=tile,
        SP=sizes.power_of_two(sequences),
        LENGTH=spans.length,
        STRIDE=spans.stride,
        BLOCK=candidates.block,
        PAGE=candidates.page_size,
        SLOTS=entries.shape[1],
        BN=size.keys,
        BB=size.blocks,
        WIDTH=size.width if rule else 0,
        HEAVIEST=spans.pool == "max",
        UPCAST=gpu.upcast(q),
        num_warps=size.warps,
        num_stages=size.stages,
    )
    return out, lse, ids
