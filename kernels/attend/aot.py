"""Calls of the Triton attention kernel whose variants are compiled ahead of time, on tensors that
have shapes and no memory.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from ..store import RowLayout
from .call import AttendCall
from .gather_aot import cases as gather_cases
from .keys import BlockLists, Keys
from .latent_aot import cases as latent_cases
from .triton import attend

Call = Callable[[], object]


def cases() -> dict[str, Call]:
    """By name. Names that end in _quick are compiled by every test run."""
    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    prefill, decode = (4096, 2), (8, 8)
    return {
        "prefill_d128_quick": partial(_attend, prefill, bf16),
        "prefill_d64": partial(_attend, prefill, bf16, heads=(9, 3), dim=64),
        "prefill_d96": partial(_attend, prefill, bf16, dim=96),
        "prefill_d192_dv128": partial(_attend, prefill, bf16, heads=(16, 16), dim=192, v_dim=128),
        "prefill_d256": partial(_attend, prefill, bf16, dim=256),
        "prefill_fp16": partial(_attend, prefill, fp16),
        "prefill_fp32": partial(_attend, prefill, fp32),
        "prefill_page16": partial(_attend, prefill, bf16, page=16),
        "prefill_page128": partial(_attend, prefill, bf16, page=128),
        "prefill_mha": partial(_attend, prefill, bf16, heads=(32, 32)),
        "prefill_window": partial(_attend, prefill, bf16, window=2048, sinks=64),
        "prefill_bounds": partial(_attend, prefill, bf16, bounds=True),
        "prefill_kept": partial(_attend, (4096, 64), bf16, heads=(1, 1), kept=True),
        "prefill_softcap_sinks": partial(_attend, prefill, bf16, softcap=30.0, sink_logits=True),
        "prefill_latent": partial(_attend, prefill, bf16, heads=(64, 1), dim=576, value_dim=512),
        "decode_d128_quick": partial(_attend, decode, bf16),
        "decode_d64": partial(_attend, decode, bf16, heads=(9, 3), dim=64),
        "decode_fp32": partial(_attend, decode, fp32),
        "decode_window": partial(_attend, decode, bf16, window=2048, sinks=64),
        "decode_kept": partial(_attend, (256, 256), bf16, heads=(1, 1), kept=True),
        "lists_kv512_quick": partial(_attend, prefill, bf16, block=512, columns=8, owners=8),
        "lists_head512": partial(_attend, prefill, bf16, block=512, columns=8, owners=32),
        "lists_kv64": partial(_attend, prefill, bf16, block=64, columns=16, owners=8),
        "lists_kv16": partial(_attend, decode, bf16, block=16, columns=128, owners=8),
        "lists_kv4": partial(_attend, decode, bf16, block=4, columns=513, owners=8),
        "lists_kv4_prompt": partial(_attend, prefill, bf16, block=4, columns=513, owners=8),
        **gather_cases(),
        **latent_cases(),
    }


def _attend(
    rows: tuple[int, int],
    dtype: torch.dtype,
    heads: tuple[int, int] = (32, 8),
    dim: int = 128,
    v_dim: int | None = None,
    page: int = 64,
    window: int | None = None,
    sinks: int = 0,
    bounds: bool = False,
    kept: bool = False,
    softcap: float | None = None,
    sink_logits: bool = False,
    value_dim: int | None = None,
    block: int = 0,
    columns: int = 0,
    owners: int = 0,
) -> object:
    """One call. rows: (rows, sequences); heads: (query heads, KV heads); kept: as MoSA's lists, of
    which rows see the first keys, and in fp32.
    """

    def tensor(*shape: int, of: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=of, device="meta")

    (count, sequences), (q_heads, kv_heads) = rows, heads
    layout = RowLayout(page)
    width = 0 if value_dim else (v_dim or dim)
    k, v = layout.allocate(16384, kv_heads, dim, width, dtype, "meta")
    bound = tensor(count, of=torch.int32) if bounds or kept else None
    lists = None
    if block:
        lists = BlockLists(tensor(count, owners, columns, of=torch.int32), None, block)
    keys = Keys(
        tensor(sequences + 1, of=torch.int32),
        tensor(count, of=torch.int64),
        tensor(sequences, 2048, of=torch.int32),
        None if kept else bound,
        bound,
        window,
        sinks,
        lists,
    )
    logits = tensor(q_heads, of=torch.float32) if sink_logits else None
    q = tensor(count, q_heads, dim)
    out = torch.float32 if kept else dtype
    return attend(AttendCall(layout, q, k, v, keys, dim**-0.5, out, softcap, logits, value_dim))
