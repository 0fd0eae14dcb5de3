"""Attention over summaries on a GPU."""

from __future__ import annotations

import torch

from .. import gpu
from .. import triton_sizes as sizes
from .call import CompressedCall
from .lists import ListRule

MOST = 64  # blocks that a row's keys are sorted for in registers


def supports(call: CompressedCall) -> str | None:
    """None when the kernel can serve this call, otherwise the reason."""
    if call.listed > MOST:
        return f"lists of more than {MOST} blocks"
    if call.q.shape[2] > 768 or call.value_dim > 512:
        return "more than 768 channels of keys or 512 of values"
    return gpu.triton_refusal(call.q, call.entries)


def compressed(call: CompressedCall) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `saccade.kernels.compressed.compressed`."""
    from .triton_kernel import compressed_rows

    q, entries, candidates, spans = call.q, call.entries, call.candidates, call.spans
    rows, heads, dim = q.shape
    owners, listed, table = call.owners, call.listed, candidates.page_table.contiguous()
    chosen = call.rule or ListRule(1)
    out, lse, ids = call.results()
    if not rows:
        return out, lse, ids
    sequences = table.shape[0]
    size = sizes.coarse(listed, dim, call.value_dim, q.dtype, gpu.capability(q))
    padded = sizes.power_of_two(call.group)
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
        call.scale * sizes.LOG2E,
        call.value_first,
        D=dim,
        DV=call.value_dim,
        BD=main,
        REST=rest,
        BDV=max(sizes.power_of_two(call.value_dim), 16),
        GROUP=call.group,
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
        WIDTH=size.width if call.rule else 0,
        HEAVIEST=spans.pool == "max",
        UPCAST=gpu.upcast(q),
        num_warps=size.warps,
        num_stages=size.stages,
    )
    return out, lse, ids
