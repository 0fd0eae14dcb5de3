"""Paged attention of single rows (decode) by the CUDA kernel, split over the keys."""

from __future__ import annotations

import torch

from .. import cuda_native
from ..store import PageLayout, RowLayout
from .keys import Keys

THREADS, STAGES, MOST_SPLITS = 128, 2, 64  # as in csrc/cuda/decode.cu
GROUPS = (1, 2, 4, 8, 16)  # query heads of one program
SPLIT_KEYS = 256  # the fewest keys of a split
ROWS_PER_SEQUENCE = 8  # from there on rows share their keys, which this kernel does not know
MOST_ROWS = 65535  # of a grid's third dimension
TWO_BLOCKS = 100 * 1024  # bytes of shared memory of which two blocks fit a multiprocessor


def supports(
    layout: PageLayout,
    q: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    keys: Keys,
    scale: float,
    softcap: float | None,
    sink_logits: torch.Tensor | None,
    out_dtype: torch.dtype,
    value_dim: int | None = None,
) -> str | None:
    """None when the kernel can serve this call, otherwise the reason."""
    if out_dtype not in (q.dtype, torch.float32):
        return f"output {out_dtype} for input {q.dtype}"
    if not isinstance(layout, RowLayout):
        return "pages have the CPU's layout"
    if not (k_pages[:1].is_contiguous() and v_pages[:1].is_contiguous()):
        return "the heads of a page are not contiguous"
    if q.shape[0] > min(ROWS_PER_SEQUENCE * keys.page_table.shape[0], MOST_ROWS):
        return f"{q.shape[0]} rows of {keys.page_table.shape[0]} sequences: prefill"
    v_dim = value_dim or v_pages.shape[3]
    if v_dim % 8 or not 0 < v_dim <= 8 * THREADS:
        return f"values of {v_dim} channels"
    if reason := cuda_native.unsupported(q, k_pages, v_pages):
        return reason
    blocks = keys.blocks
    found = (keys.cu_rows, keys.positions, keys.page_table, keys.lo, keys.hi, sink_logits)
    listed = () if blocks is None else (blocks.ids, blocks.list_of_row)
    if any(each is not None and each.device != q.device for each in (*found, *listed)):
        return f"index tensors are not on {q.device}"
    group = group_of(q.shape[1], k_pages.shape[1], keys)
    if tile_of(q, v_pages, group, cuda_native.shared_memory(q.device.index or 0)) is None:
        return f"head dim {q.shape[2]} needs more shared memory than a block can have"
    return None


def group_of(heads: int, kv_heads: int, keys: Keys) -> int:
    """Query heads of one program: all that share keys and lists, up to the most it holds."""
    shared = heads // kv_heads
    if keys.blocks is not None and keys.blocks.ids.shape[1] == heads:
        return 1
    return next(n for n in range(min(shared, GROUPS[-1]), 0, -1) if shared % n == 0)


def shared_bytes(q: torch.Tensor, v_dim: int, group: int, tile: int) -> int:
    """Shared memory of one block: pages in flight, q, scores and the state of every head."""
    rows = q.shape[2] * q.itemsize + 16 + (v_dim * q.itemsize + 16 if v_dim else 0)
    return STAGES * tile * (rows + 4) + group * 4 * (q.shape[2] + THREADS + 3)


def tile_of(q: torch.Tensor, v_pages: torch.Tensor, group: int, limit: int) -> int | None:
    """Keys at a time: as many as let two blocks share a multiprocessor, else what fits at all."""
    for room in (min(TWO_BLOCKS, limit), limit):
        for tile in (64, 32, 16):
            if shared_bytes(q, v_pages.shape[3], group, tile) <= room:
                return tile
    return None


def most_keys(layout: PageLayout, keys: Keys) -> int:
    """The most keys that a row can see, as far as shapes tell."""
    held = keys.page_table.shape[1] * layout.page_size
    if keys.blocks is not None:
        return keys.blocks.ids.shape[2] * keys.blocks.block
    return held if keys.window is None else min(held, keys.window + keys.sinks)


def attend(
    layout: PageLayout,
    q: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    keys: Keys,
    scale: float,
    softcap: float | None,
    sink_logits: torch.Tensor | None,
    out_dtype: torch.dtype,
    value_dim: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `saccade.kernels.attend.attend`."""
    rows, heads, dim = q.shape
    v_dim = value_dim or v_pages.shape[3]
    group = group_of(heads, k_pages.shape[1], keys)
    tile = tile_of(q, v_pages, group, cuda_native.shared_memory(q.device.index or 0)) or 16
    # One unit more: sinks and window each may end with a tile that is not full.
    units = -(-most_keys(layout, keys) // tile) + 1
    splits = min(MOST_SPLITS, -(-units // (SPLIT_KEYS // tile)))
    out = q.new_empty((rows, heads, v_dim), dtype=out_dtype)
    lse = q.new_empty((rows, heads), dtype=torch.float32)
    if not rows:
        return out, lse
    shape = (rows, heads // group, splits if splits > 1 else 0, group, v_dim + 2)
    partial = q.new_empty(shape, dtype=torch.float32)
    arrived = q.new_zeros(shape[:2], dtype=torch.int32)
    # The copies that `contiguous` makes stay referenced until the kernel is launched.
    held = _held(keys, sink_logits)
    fields = {
        "rows": rows,
        "seqs": keys.page_table.shape[0],
        "heads": heads,
        "kv_heads": k_pages.shape[1],
        "dim": dim,
        "v_dim": v_dim,
        "page": layout.page_size,
        "pages": k_pages.shape[0],
        "q": q.data_ptr(),
        "q_row": q.stride(0),
        "q_head": q.stride(1),
        "k_pages": k_pages.data_ptr(),
        "k_page": k_pages.stride(0),
        "v_pages": 0 if value_dim else v_pages.data_ptr(),
        "v_page": v_pages.stride(0),
        **_seen(keys, held),
        "out": out.data_ptr(),
        "out_f32": int(out_dtype == torch.float32),
        "lse": lse.data_ptr(),
        "group": group,
        "splits": splits,
        "tile": tile,
        "least": SPLIT_KEYS // tile,
        "partial": partial.data_ptr(),
        "arrived": arrived.data_ptr(),
        "scale": float(scale),
        "softcap": float(softcap or 0.0),
    }
    width = next(n for n in GROUPS if n >= group)
    name = f"saccade_decode_{cuda_native.TYPES[q.dtype]}_{width}"
    shared = shared_bytes(q, v_pages.shape[3], group, tile)
    cuda_native.launch(name, (splits, heads // group, rows), THREADS, shared, q.device, fields)
    return out, lse


def _pointer(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _seen(keys: Keys, held: dict[str, torch.Tensor | None]) -> dict[str, int]:
    """The fields that say which keys a row sees."""
    blocks, ids = keys.blocks, held["blocks"]
    return {
        "table": _pointer(held["table"]),
        "table_row": keys.page_table.shape[1],
        "table_width": keys.page_table.shape[1],
        "cu_rows": _pointer(held["cu_rows"]),
        "positions": _pointer(held["positions"]),
        "lo": _pointer(held["lo"]),
        "hi": _pointer(held["hi"]),
        "window": keys.window or 0,
        "sinks": keys.sinks,
        "sink_logits": _pointer(held["sink_logits"]),
        "blocks": _pointer(ids),
        "list_of_row": _pointer(held["list_of_row"]),
        "lists": 0 if ids is None else ids.shape[0],
        "owners": 1 if ids is None else ids.shape[1],
        "list_width": 0 if ids is None else ids.shape[2],
        "block": 1 if blocks is None else blocks.block,
    }


def _held(keys: Keys, sink_logits: torch.Tensor | None) -> dict[str, torch.Tensor | None]:
    """What the kernel reads beside q and the pages, contiguous."""
    blocks = keys.blocks
    ids = None if blocks is None else blocks.ids
    if ids is not None and ids.shape[2] == 0:  # the kernel knows absent lists by a null pointer
        ids = ids.new_full((*ids.shape[:2], 1), -1)
    found = {
        "table": keys.page_table,
        "cu_rows": keys.cu_rows,
        "positions": keys.positions,
        "lo": keys.lo,
        "hi": keys.hi,
        "sink_logits": sink_logits,
        "blocks": ids,
        "list_of_row": None if blocks is None else blocks.list_of_row,
    }
    return {name: None if each is None else each.contiguous() for name, each in found.items()}
