"""Block lists turned round by the CUDA kernels: histogram, scans, scatter and tiles."""

from __future__ import annotations

import torch

from .. import cuda_native
from .block_tiles import BlockTiles, TilesCall

THREADS, SCAN_THREADS = 128, 512  # as in csrc/cuda/index.cu, like these:
QUERIES, WINDOW = 256, 512  # of a chunk; blocks whose bitmaps lie in shared memory
BITMAPS, WARP_SUMS = WINDOW * QUERIES // 8, SCAN_THREADS // 32 * 8  # bytes of shared memory
MOST_COUNTS = 2**24  # counts of every (bin, chunk): 64 MiB
MOST_ENTRIES = 2**31 - 1


def supports(call: TilesCall) -> str | None:
    """None when the kernels can serve this call, otherwise the reason."""
    ids = call.ids
    if not ids.numel() or not call.groups:
        return "no lists"
    if ids.dtype != torch.int32:
        return "lists are not int32"
    if reason := cuda_native.elsewhere(ids, ids, call.sequence, call.own):
        return reason
    if ids.shape[1] // call.kv_heads > QUERIES:
        return f"more than {QUERIES} lists share a KV head"
    if ids.numel() > MOST_ENTRIES:
        return f"{ids.numel()} entries do not fit 32 bits"
    bins, chunks = call.groups, chunks_of(call)
    if bins * chunks > MOST_COUNTS:
        return f"{bins} bins of {chunks} chunks need more than {MOST_COUNTS} counts"
    return cuda_native.missing(ids)


def chunks_of(call: TilesCall) -> int:
    """Chunks of rows: all lists of a KV head together are at most QUERIES."""
    rows, owners, _ = call.ids.shape
    return -(-rows // (QUERIES // (owners // call.kv_heads)))


def block_tiles(call: TilesCall) -> BlockTiles:
    """See `saccade.kernels.attend.gather_index.block_tiles`; `order` is undefined behind the last
    tile.
    """
    ids, blocks, kv_heads = call.ids, call.blocks, call.kv_heads
    rows, owners, listed = ids.shape
    bins, chunks, most = call.groups, chunks_of(call), call.most_tiles
    before = ids.new_zeros((bins, chunks))
    starts, tile_starts = ids.new_empty(bins + 1), ids.new_empty(bins + 1)
    order = ids.new_empty(ids.numel())
    group, first, count = (ids.new_empty(most) for _ in range(3))
    fields = {
        "rows": rows,
        "sequences": call.sequences,
        "owners": owners,
        "kv_heads": kv_heads,
        "list_width": listed,
        "blocks": blocks,
        "ids": ids.data_ptr(),
        "sequence": call.sequence.data_ptr(),
        "own": call.own.data_ptr(),
        "chunks": chunks,
        "bins": bins,
        "before": before.data_ptr(),
        "starts": starts.data_ptr(),
        "tile_starts": tile_starts.data_ptr(),
        "order": order.data_ptr(),
        "group": group.data_ptr(),
        "first": first.data_ptr(),
        "count": count.data_ptr(),
        "most_tiles": most,
        "tile": call.tile,
    }

    def run(name: str, grid: tuple[int, int, int], threads: int, shared: int) -> None:
        cuda_native.launch(f"saccade_index_{name}", grid, threads, shared, ids.device, fields)

    grid = (chunks, kv_heads, -(-blocks // WINDOW))
    run("count", grid, THREADS, BITMAPS)
    run("scan_chunks", (-(-bins // (THREADS // 32)), 1, 1), THREADS, 0)
    run("scan_bins", (1, 1, 1), SCAN_THREADS, WARP_SUMS)
    run("scatter", grid, THREADS, BITMAPS)
    run("tiles", (-(-max(bins, most) // THREADS), 1, 1), THREADS, 0)
    return BlockTiles(order, group, first, count)
