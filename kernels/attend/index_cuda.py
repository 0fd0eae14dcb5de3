"""Block lists turned round by the CUDA kernels: histogram, scans, scatter and tiles."""

from __future__ import annotations

import torch

from .. import cuda_native
from .block_tiles import BlockTiles

THREADS, SCAN_THREADS = 128, 512  # as in csrc/cuda/index.cu, like these:
QUERIES, WINDOW = 256, 512  # of a chunk; blocks whose bitmaps lie in shared memory
BITMAPS, WARP_SUMS = WINDOW * QUERIES // 8, SCAN_THREADS // 32 * 8  # bytes of shared memory
MOST_COUNTS = 2**24  # counts of every (bin, chunk): 64 MiB
MOST_ENTRIES = 2**31 - 1


def supports(
    ids: torch.Tensor,
    sequence: torch.Tensor,
    own: torch.Tensor,
    sequences: int,
    blocks: int,
    kv_heads: int,
    tile: int,
) -> str | None:
    """None when the kernels can serve this call, otherwise the reason."""
    if not ids.numel() or not sequences * blocks:
        return "no lists"
    if ids.dtype != torch.int32:
        return "lists are not int32"
    if reason := cuda_native.elsewhere(ids, ids, sequence, own):
        return reason
    if ids.shape[1] // kv_heads > QUERIES:
        return f"more than {QUERIES} lists share a KV head"
    if ids.numel() > MOST_ENTRIES:
        return f"{ids.numel()} entries do not fit 32 bits"
    bins, chunks = sequences * blocks * kv_heads, chunks_of(ids, kv_heads)
    if bins * chunks > MOST_COUNTS:
        return f"{bins} bins of {chunks} chunks need more than {MOST_COUNTS} counts"
    return cuda_native.missing(ids)


def chunks_of(ids: torch.Tensor, kv_heads: int) -> int:
    """Chunks of rows: all lists of a KV head together are at most QUERIES."""
    return -(-ids.shape[0] // (QUERIES // (ids.shape[1] // kv_heads)))


def block_tiles(
    ids: torch.Tensor,
    sequence: torch.Tensor,
    own: torch.Tensor,
    sequences: int,
    blocks: int,
    kv_heads: int,
    tile: int,
) -> BlockTiles:
    """See `saccade.kernels.attend.gather_index.block_tiles`; `order` is undefined behind the last
    tile.
    """
    rows, owners, listed = ids.shape
    bins, chunks = sequences * blocks * kv_heads, chunks_of(ids, kv_heads)
    entries = ids.numel()
    most = entries // tile + min(bins, entries)
    before = ids.new_zeros((bins, chunks))
    starts, tile_starts = ids.new_empty(bins + 1), ids.new_empty(bins + 1)
    order = ids.new_empty(entries)
    group, first, count = (ids.new_empty(most) for _ in range(3))
    fields = {
        "rows": rows,
        "sequences": sequences,
        "owners": owners,
        "kv_heads": kv_heads,
        "list_width": listed,
        "blocks": blocks,
        "ids": ids.data_ptr(),
        "sequence": sequence.data_ptr(),
        "own": own.data_ptr(),
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
        "tile": tile,
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
