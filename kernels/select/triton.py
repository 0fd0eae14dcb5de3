"""Block selection on a GPU."""

from __future__ import annotations

import torch

from .. import gpu
from .. import triton_sizes as sizes
from .candidates import Candidates

MOST = 63  # blocks that a row's keys are sorted for in registers


def supports(q: torch.Tensor, means: torch.Tensor, candidates: Candidates, topk: int) -> str | None:
    """None when the kernel can serve this call, otherwise the reason."""
    if topk > MOST:
        return f"more than {MOST} blocks"
    if q.shape[2] > 256:
        return "more than 256 channels"
    return gpu.triton_refusal(q, means)


def select_blocks(
    q: torch.Tensor, means: torch.Tensor, candidates: Candidates, topk: int
) -> torch.Tensor:
    """See `saccade.kernels.select.select_blocks`."""
    from .triton_kernel import select_rows

    rows, heads, dim = q.shape
    kv_heads, table = means.shape[2], candidates.page_table.contiguous()
    ids = torch.empty((rows, heads, topk + 1), dtype=torch.int32, device=q.device)
    if not rows:
        return ids
    group, sequences = heads // kv_heads, table.shape[0]
    size = sizes.ranking(topk + 1, q.dtype)
    padded = sizes.power_of_two(group)
    tile = max(size.rows // padded, 1)
    select_rows[(sizes.most_tiles(rows, sequences, tile), kv_heads)](
        q,
        means,
        table,
        candidates.cu_rows.contiguous(),
        candidates.positions.contiguous(),
        ids,
        *q.stride()[:2],
        *means.stride()[:3],
        table.stride(0),
        table.shape[1],
        sequences,
        heads,
        topk,
        D=dim,
        BD=max(sizes.power_of_two(dim), 16),
        GROUP=group,
        BG=padded,
        BT=tile,
        SP=sizes.power_of_two(sequences),
        BLOCK=candidates.block,
        PAGE=candidates.page_size,
        SLOTS=means.shape[1],
        BN=size.keys,
        WIDTH=size.width,
        UPCAST=gpu.upcast(q),
        num_warps=size.warps,
        num_stages=size.stages,
    )
    return ids
