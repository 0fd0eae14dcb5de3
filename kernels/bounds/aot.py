"""Calls of the Triton key bounds, and of selection by them, whose variants are compiled ahead of
time, on tensors that have shapes and no memory.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from ..compressed.lists import ListRule
from ..select import Candidates
from ..store import RowLayout
from ..summarize import CompletedBlocks
from .triton import key_bounds, select_bounded

Call = Callable[[], object]


def cases() -> dict[str, Call]:
    """By name. Names that end in _quick are compiled by every test run."""
    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    return {
        "bounds_64": partial(_bounds, 64, bf16),
        "bounds_16": partial(_bounds, 16, fp16, dim=64),
        "bounds_fp32": partial(_bounds, 128, fp32, dim=256),
        "bounded_64_32_quick": partial(_select, 64, 32, bf16),
        "bounded_16_128": partial(_select, 16, 128, bf16),
        "bounded_sum": partial(_select, 64, 256, fp16, reduction="sum"),
        "bounded_d64": partial(_select, 64, 32, bf16, dim=64, heads=(9, 3)),
        "bounded_d256": partial(_select, 128, 32, bf16, dim=256, heads=(64, 2)),
        "bounded_fp32": partial(_select, 64, 32, fp32),
    }


def _tensor(*shape: int, of: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=of, device="meta")


def _bounds(block: int, dtype: torch.dtype, dim: int = 128) -> None:
    """Of 32 blocks, eight heads."""
    number = torch.int64
    done = CompletedBlocks(
        block, _tensor(32, block // 64 + 1, of=number), *(_tensor(32, of=number),) * 2, block
    )
    k = _tensor(16384, 8, 64, dim, of=dtype)
    key_bounds(RowLayout(64), k, _tensor(16384, max(64 // block, 1), 8, 2, dim, of=dtype), done)


def _select(
    block: int,
    listed: int,
    dtype: torch.dtype,
    dim: int = 128,
    heads: tuple[int, int] = (32, 8),
    reduction: str = "max",
) -> object:
    """One call over a row of each of eight sequences of up to 128K tokens."""
    candidates = Candidates(
        _tensor(9, of=torch.int32),
        _tensor(8, of=torch.int64),
        _tensor(8, 2048, of=torch.int32),
        block,
        64,
    )
    bounds = _tensor(16384, max(64 // block, 1), heads[1], 2, dim, of=dtype)
    q = _tensor(8, heads[0], dim, of=dtype)
    return select_bounded(q, bounds, candidates, ListRule(listed), reduction)
