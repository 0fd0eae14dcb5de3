"""Paged attention of single rows (decode) by the CUDA kernel, split over the keys."""

from __future__ import annotations

import torch

from .. import cuda_native, gpu
from ..store import RowLayout
from .call import AttendCall
from .keys import Keys
from .latent_rules import tensor_cores_pay

THREADS, STAGES, MOST_SPLITS = 128, 2, 64  # as in csrc/cuda/decode.cu
GROUPS = (1, 2, 4, 8, 16)  # query heads of one program
SPLIT_KEYS = 256  # the fewest keys of a split
ROWS_PER_SEQUENCE = 8  # from there on rows share their keys, which this kernel does not know
MOST_ROWS = 65535  # of a grid's third dimension
TWO_BLOCKS = 100 * 1024  # bytes of shared memory of which two blocks fit a multiprocessor


def supports(call: AttendCall) -> str | None:
    """None when the kernel can serve this call, otherwise the reason."""
    if reason := call.output_refusal():
        return reason
    if not isinstance(call.layout, RowLayout):
        return "pages have the CPU's layout"
    q, k_pages, v_pages = call.q, call.k_pages, call.v_pages
    if not (k_pages[:1].is_contiguous() and v_pages[:1].is_contiguous()):
        return "the heads of a page are not contiguous"
    if call.rows > min(ROWS_PER_SEQUENCE * call.sequences, MOST_ROWS):
        return f"{call.rows} rows of {call.sequences} sequences: prefill"
    v_dim = call.v_dim
    if v_dim % 8 or not 0 < v_dim <= 8 * THREADS:
        return f"values of {v_dim} channels"
    if reason := cuda_native.unsupported(q, k_pages, v_pages):
        return reason
    if call.value_dim and tensor_cores_pay(call.group) and not gpu.triton_refusal(q, k_pages):
        return f"{call.group} heads of a latent: Triton's kernel multiplies by tensor cores"
    keys, blocks = call.keys, call.keys.blocks
    found = (keys.cu_rows, keys.positions, keys.page_table, keys.lo, keys.hi, call.sink_logits)
    listed = () if blocks is None else (blocks.ids, blocks.list_of_row)
    if any(each is not None and each.device != q.device for each in (*found, *listed)):
        return f"index tensors are not on {q.device}"
    if tile_of(call, group_of(call)) is None:
        return f"head dim {call.head_dim} needs more shared memory than a block can have"
    return None


def group_of(call: AttendCall) -> int:
    """Query heads of one program: all that share keys and lists, up to the most it holds."""
    shared, blocks = call.group, call.keys.blocks
    if blocks is not None and blocks.ids.shape[1] == call.heads:
        return 1
    return next(n for n in range(min(shared, GROUPS[-1]), 0, -1) if shared % n == 0)


def shared_bytes(call: AttendCall, group: int, tile: int) -> int:
    """Shared memory of one block: pages in flight, q, scores and the state of every head."""
    q, v_dim = call.q, call.v_pages.shape[3]  # none where the values are in the keys
    rows = q.shape[2] * q.itemsize + 16 + (v_dim * q.itemsize + 16 if v_dim else 0)
    return STAGES * tile * (rows + 4) + group * 4 * (q.shape[2] + THREADS + 3)


def tile_of(call: AttendCall, group: int) -> int | None:
    """Keys at a time: as many as let two blocks share a multiprocessor, else what fits at all."""
    limit = cuda_native.shared_memory(call.q.device.index or 0)
    for room in (min(TWO_BLOCKS, limit), limit):
        for tile in (64, 32, 16):
            if shared_bytes(call, group, tile) <= room:
                return tile
    return None


def most_keys(call: AttendCall) -> int:
    """The most keys that a row can see, as far as shapes tell."""
    keys = call.keys
    held = keys.page_table.shape[1] * call.layout.page_size
    if keys.blocks is not None:
        return keys.blocks.ids.shape[2] * keys.blocks.block
    return held if keys.window is None else min(held, keys.window + keys.sinks)


def attend(call: AttendCall) -> tuple[torch.Tensor, torch.Tensor]:
    """See `saccade.kernels.attend.attend`."""
    q, k_pages, v_pages, keys = call.q, call.k_pages, call.v_pages, call.keys
    group = group_of(call)
    tile = tile_of(call, group) or 16
    # One unit more: sinks and window each may end with a tile that is not full.
    units = -(-most_keys(call) // tile) + 1
    splits = min(MOST_SPLITS, -(-units // (SPLIT_KEYS // tile)))
    out, lse = call.results()
    rows, heads, v_dim = out.shape
    if not rows:
        return out, lse
    shape = (rows, heads // group, splits if splits > 1 else 0, group, v_dim + 2)
    partial = q.new_empty(shape, dtype=torch.float32)
    arrived = q.new_zeros(shape[:2], dtype=torch.int32)
    # The copies that `contiguous` makes stay referenced until the kernel is launched.
    held = _held(call)
    fields = {
        "rows": rows,
        "seqs": call.sequences,
        "heads": heads,
        "kv_heads": call.kv_heads,
        "dim": call.head_dim,
        "v_dim": v_dim,
        "page": call.layout.page_size,
        "pages": k_pages.shape[0],
        "q": q.data_ptr(),
        "q_row": q.stride(0),
        "q_head": q.stride(1),
        "k_pages": k_pages.data_ptr(),
        "k_page": k_pages.stride(0),
        "v_pages": 0 if call.value_dim else v_pages.data_ptr(),
        "v_page": v_pages.stride(0),
        **_seen(keys, held),
        "out": out.data_ptr(),
        "out_f32": int(out.dtype == torch.float32),
        "lse": lse.data_ptr(),
        "group": group,
        "splits": splits,
        "tile": tile,
        "least": SPLIT_KEYS // tile,
        "partial": partial.data_ptr(),
        "arrived": arrived.data_ptr(),
        "scale": float(call.scale),
        "softcap": float(call.softcap or 0.0),
    }
    width = next(n for n in GROUPS if n >= group)
    name = f"saccade_decode_{cuda_native.TYPES[q.dtype]}_{width}"
    shared = shared_bytes(call, group, tile)
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


def _held(call: AttendCall) -> dict[str, torch.Tensor | None]:
    """What the kernel reads beside q and the pages, contiguous."""
    keys, blocks = call.keys, call.keys.blocks
    ids = None if blocks is None else blocks.ids
    if ids is not None and ids.shape[2] == 0:  # the kernel knows absent lists by a null pointer
        ids = ids.new_full((*ids.shape[:2], 1), -1)
    found = {
        "table": keys.page_table,
        "cu_rows": keys.cu_rows,
        "positions": keys.positions,
        "lo": keys.lo,
        "hi": keys.hi,
        "sink_logits": call.sink_logits,
        "blocks": ids,
        "list_of_row": None if blocks is None else blocks.list_of_row,
    }
    return {name: None if each is None else each.contiguous() for name, each in found.items()}
