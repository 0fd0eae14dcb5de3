"""Calls of attention over latents whose variants are compiled ahead of time, on tensors that have
shapes and no memory.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from ..store import RowLayout
from .call import AttendCall
from .keys import BlockLists, Keys
from .triton import attend

Call = Callable[[], object]


def cases() -> dict[str, Call]:
    """By name: a step of eight rows. Names that end in _quick are compiled by every test run."""
    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    return {
        "latent_128_quick": partial(_decode, bf16, 128),
        "latent_64": partial(_decode, bf16, 64),
        "latent_32": partial(_decode, bf16, 32),
        "latent_16": partial(_decode, bf16, 16),
        "latent_fp16": partial(_decode, fp16, 128),
        "latent_fp32": partial(_decode, fp32, 128),
        "latent_256": partial(_decode, bf16, 128, rank=256),
        "latent_window": partial(_decode, bf16, 128, window=2048),
        "latent_window_32": partial(_decode, bf16, 32, window=2048),
        "latent_options": partial(_decode, bf16, 128, window=2048, options=True),
        "latent_options_16": partial(_decode, bf16, 16, window=2048, options=True),
        "latent_page16": partial(_decode, bf16, 128, page=16),
        "latent_page32": partial(_decode, bf16, 128, page=32),
        "latent_page256": partial(_decode, bf16, 128, page=256),
        "latent_lists16": partial(_decode, bf16, 64, groups=4, block=16, columns=16),
        "latent_lists16_long": partial(_decode, bf16, 128, groups=4, block=16, columns=64),
        "latent_lists16_wide": partial(_decode, bf16, 128, block=16, columns=16),
        "latent_lists32": partial(_decode, bf16, 128, block=32, columns=16),
        "latent_lists64": partial(_decode, bf16, 128, block=64, columns=16),
        "latent_lists64_options": partial(
            _decode, bf16, 128, block=64, columns=64, window=2048, options=True
        ),
    }


def _decode(
    dtype: torch.dtype,
    heads: int,
    groups: int = 1,
    rank: int = 512,
    page: int = 64,
    window: int | None = None,
    block: int = 0,
    columns: int = 0,
    options: bool = False,
) -> object:
    """One call over rank + 64 channels. options: bounds of rows, a softcap and sink logits."""

    def tensor(*shape: int, of: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=of, device="meta")

    layout, dim = RowLayout(page), rank + 64
    k, v = layout.allocate(16384, groups, dim, 0, dtype, "meta")
    bound = tensor(8, of=torch.int32) if options else None
    lists = None
    if block:
        lists = BlockLists(tensor(8, groups, columns, of=torch.int32), None, block)
    keys = Keys(
        tensor(9, of=torch.int32),
        tensor(8, of=torch.int64),
        tensor(8, 131072 // page, of=torch.int32),
        bound,
        bound,
        window,
        blocks=lists,
    )
    return attend(
        AttendCall(
            layout,
            tensor(8, heads, dim),
            k,
            v,
            keys,
            192**-0.5,
            dtype,
            30.0 if options else None,
            tensor(heads, of=torch.float32) if options else None,
            rank,
        )
    )
