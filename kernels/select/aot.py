"""Calls of the Triton block selection whose variants are compiled ahead of time, on tensors that
have shapes and no memory.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from .candidates import Candidates
from .triton import select_blocks

Call = Callable[[], object]


def cases() -> dict[str, Call]:
    """By name. Names that end in _quick are compiled by every test run."""
    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    return {
        "select_128_7_quick": partial(_select, 128, 7, bf16),
        "select_512_7": partial(_select, 512, 7, bf16),
        "select_4096_11": partial(_select, 4096, 11, bf16),
        "select_16_31": partial(_select, 16, 31, fp16),
        "select_64_63": partial(_select, 64, 63, bf16),
        "select_d64": partial(_select, 512, 7, bf16, dim=64, heads=(9, 3)),
        "select_d256": partial(_select, 512, 7, bf16, dim=256),
        "select_fp32": partial(_select, 512, 7, fp32),
    }


def _select(
    block: int, topk: int, dtype: torch.dtype, dim: int = 128, heads: tuple[int, int] = (32, 8)
) -> object:
    """One call over 4096 rows of two sequences."""

    def tensor(*shape: int, of: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=of, device="meta")

    candidates = Candidates(
        tensor(3, of=torch.int32),
        tensor(4096, of=torch.int64),
        tensor(2, 2048, of=torch.int32),
        block,
        64,
    )
    means = tensor(16384, max(64 // block, 1), heads[1], dim, of=dtype)
    return select_blocks(tensor(4096, heads[0], dim, of=dtype), means, candidates, topk)
