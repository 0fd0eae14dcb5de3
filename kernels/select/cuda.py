"""Block selection by the CUDA kernel."""

from __future__ import annotations

import torch

from .. import cuda_native
from .candidates import Candidates

THREADS = 128
ROWS, CHUNK, SLICE = 32, 64, 32  # as in csrc/cuda/select.cu
PROGRAMS = 264  # two for each multiprocessor of a Hopper GPU


def shared_bytes(dim: int, listed: int) -> int:
    """Shared memory of one block: lists, rows, a slice of means, scores."""
    floats = ROWS * (dim + 4) + CHUNK * (SLICE + 4) + ROWS * (CHUNK + 1)
    return ROWS * listed * 8 + floats * 4


def splits_of(programs: int, blocks: int) -> int:
    """Into how many parts a row's candidates are cut: as many as fill the GPU, each of at least
    four chunks, for with fewer the joining costs more than it saves.
    """
    return max(1, min(PROGRAMS // max(programs, 1), blocks // (4 * CHUNK), 32))


def supports(q: torch.Tensor, means: torch.Tensor, candidates: Candidates, topk: int) -> str | None:
    """None when the kernel can serve this call, otherwise the reason."""
    if not means.is_contiguous():
        return "means are not contiguous"
    if q.shape[1] // means.shape[2] > ROWS:
        return f"more than {ROWS} query heads share a KV head"
    if reason := cuda_native.unsupported(q, means):
        return reason
    found = candidates.cu_rows, candidates.positions, candidates.page_table
    if reason := cuda_native.elsewhere(q, *found):
        return reason
    needed = shared_bytes(q.shape[2], -(-topk // 32) * 32)
    if needed > cuda_native.shared_memory(q.device.index or 0):
        return f"head dim {q.shape[2]} with top {topk} needs {needed} bytes of shared memory"
    return None


def select_blocks(
    q: torch.Tensor, means: torch.Tensor, candidates: Candidates, topk: int
) -> torch.Tensor:
    """See `saccade.kernels.select.select_blocks`."""
    rows, heads, dim = q.shape
    pages, slots, kv_heads, _ = means.shape
    table, tokens = candidates.page_table, ROWS // (heads // kv_heads)
    seqs = table.shape[0]
    # Every sequence may end with a tile that is not full.
    tiles = min(rows, -(-rows // tokens) + seqs)
    listed = -(-topk // 32) * 32
    blocks = table.shape[1] * candidates.page_size // candidates.block
    splits = splits_of(tiles * kv_heads, blocks) if topk else 1
    ids = q.new_empty((rows, heads, topk + 1), dtype=torch.int32)
    if not rows:
        return ids
    group = heads // kv_heads
    shape = (tiles, kv_heads, splits if splits > 1 else 0, tokens * group, listed)
    partial = q.new_empty(shape, dtype=torch.int64)
    arrived = q.new_zeros((tiles, kv_heads), dtype=torch.int32)
    fields = {
        "rows": rows,
        "seqs": seqs,
        "heads": heads,
        "kv_heads": kv_heads,
        "dim": dim,
        "page": candidates.page_size,
        "pages": pages,
        "block": candidates.block,
        "slots": slots,
        "topk": topk,
        "q": q.data_ptr(),
        "q_row": q.stride(0),
        "q_head": q.stride(1),
        "means": means.data_ptr(),
        "table": table.data_ptr(),
        "table_row": table.stride(0),
        "table_width": table.shape[1],
        "cu_rows": candidates.cu_rows.data_ptr(),
        "positions": candidates.positions.data_ptr(),
        "ids": ids.data_ptr(),
        "tokens": tokens,
        "splits": splits,
        "listed": listed,
        "partial": partial.data_ptr(),
        "arrived": arrived.data_ptr(),
    }
    name = f"saccade_select_{cuda_native.TYPES[q.dtype]}"
    grid = (tiles, kv_heads, splits)
    cuda_native.launch(name, grid, THREADS, shared_bytes(dim, listed), q.device, fields)
    return ids
