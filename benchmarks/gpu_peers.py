"""Timings of other libraries' attention on the GPU, beside ours: torch's own, and whatever of
FlashInfer, flash-linear-attention and xformers is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any

import torch

from ..kernels import gpu
from .gpu_rows import NOT_MEASURED, Pages, Row, pages, reason_of
from .gpu_times import DIM, HEADS, captured, timed

Make = Callable[[], Callable[[], object]]
LONGEST = 131072  # a second of dense attention per call is no use


def prefill_peers(length: int, tiny: bool) -> Iterator[Row]:
    """Causal attention of one prompt whose K and V lie together, as they need it."""
    heads, dim, section = *(((2, 1), 32) if tiny else (HEADS, DIM)), f"prefill {length}"
    flops = 4 * dim * heads[0] * length * (length + 1) / 2
    q, k, v = (
        torch.randn((1, count, length, dim), device=gpu.device()).to(torch.bfloat16)
        for count in (heads[0], heads[1], heads[1])
    )
    makers: dict[str, Make] = {
        "torch SDPA FLASH_ATTENTION": partial(_sdpa, "FLASH_ATTENTION", q, k, v),
        "torch SDPA CUDNN_ATTENTION": partial(_sdpa, "CUDNN_ATTENTION", q, k, v),
        "torch FlexAttention": partial(_flex, q, k, v, None),
        "torch FlexAttention, window 2048, sinks 64": partial(_flex, q, k, v, (2048, 64)),
        "xformers": partial(_xformers, q, k, v),
        "fla parallel_nsa, 16 of 64, window 512": partial(_fla_nsa, q, k, v),
    }
    for name, make in makers.items():
        work = flops if "window" not in name else 0.0
        yield from _row(section, name, make, tiny, flops=work)


def decode_peers(length: int, batch: int, tiny: bool) -> Iterator[Row]:
    """One row of every sequence, over the very pages that ours reads."""
    heads, dim, section = *(((2, 1), 32) if tiny else (HEADS, DIM)), f"decode {length} b={batch}"
    read = batch * length * heads[1] * dim * 4

    def make() -> Callable[[], object]:
        held = pages([length] * batch, [1] * batch, heads, dim, torch.bfloat16, gpu.device())
        return captured(_flashinfer(held), tiny)

    yield from _row(section, "FlashInfer paged decode", make, tiny, read=read, cold=True)


def _row(section: str, name: str, make: Make, tiny: bool, **options: Any) -> Iterator[Row]:
    """A peer that is missing, or refuses, is a reason."""
    try:
        call = make()
    except Exception as error:  # noqa: BLE001 - foreign libraries fail in many ways
        yield Row(section, name, NOT_MEASURED, reason_of(error))
        return
    yield timed(section, name, call, tiny, peer=True, **options)


def _sdpa(backend: str, *qkv: torch.Tensor) -> Callable[[], object]:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    chosen = getattr(SDPBackend, backend)

    def call() -> torch.Tensor:
        with sdpa_kernel(chosen):
            return torch.nn.functional.scaled_dot_product_attention(
                *qkv, is_causal=True, enable_gqa=True
            )

    return call


def _flex(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: tuple[int, int] | None
) -> Callable[[], object]:
    """Compiled, with a block mask; window: (tokens, sinks)."""
    if not q.is_cuda:
        raise RuntimeError("it is compiled for a GPU")
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def sees(b: Any, h: Any, i: Any, j: Any) -> Any:
        if window is None:
            return i >= j
        return (i >= j) & ((i - j < window[0]) | (j < window[1]))

    length = q.shape[2]
    mask = create_block_mask(sees, None, None, length, length, q.device, _compile=True)
    compiled = torch.compile(flex_attention)
    return lambda: compiled(q, k, v, block_mask=mask, enable_gqa=True)


def _xformers(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Callable[[], object]:
    ops = import_module("xformers.ops")
    group, kv_heads = q.shape[1] // k.shape[1], k.shape[1]
    rows = q.transpose(1, 2).unflatten(2, (kv_heads, group))
    keys, values = (
        each.transpose(1, 2)[:, :, :, None].expand(-1, -1, -1, group, -1) for each in (k, v)
    )
    mask = ops.LowerTriangularMask()
    return lambda: ops.memory_efficient_attention(rows, keys, values, attn_bias=mask)


def _fla_nsa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Callable[[], object]:
    nsa = import_module("fla.ops.nsa")
    rows = [each.transpose(1, 2).contiguous() for each in (q, k, v)]
    gates = torch.rand((3, *rows[0].shape[:3]), device=q.device).to(q.dtype)
    options = {"block_counts": 16, "block_size": 64, "window_size": 512}
    return lambda: nsa.parallel_nsa(*rows, *gates, **options)


def _flashinfer(held: Pages) -> Callable[[], object]:
    """Its layout "HND" is ours."""
    flashinfer = import_module("flashinfer")
    device, size = held.q.device, held.layout.page_size
    workspace = torch.empty(128 << 20, dtype=torch.uint8, device=device)
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace, "HND")
    counts = torch.tensor([-(-stop // size) for _, stop in held.spans], dtype=torch.int32)
    table = held.keys.page_table.cpu()
    indices = torch.cat([row[:count] for row, count in zip(table, counts.tolist(), strict=True)])
    ends = torch.nn.functional.pad(counts.cumsum(0, dtype=torch.int32), (1, 0))
    last = torch.tensor([(stop - 1) % size + 1 for _, stop in held.spans], dtype=torch.int32)
    wrapper.plan(
        *(each.to(device) for each in (ends, indices, last)),
        held.q.shape[1],
        held.k.shape[1],
        held.q.shape[2],
        size,
        q_data_type=held.q.dtype,
    )
    return lambda: wrapper.run(held.q, (held.k, held.v))
