"""Calls of the Triton layers of experts whose variants are compiled ahead of time, on tensors that
have shapes and no memory.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from ..linear import PackedHeads
from .triton import experts
from .weights import ExpertWeights

Call = Callable[[], object]


def cases() -> dict[str, Call]:
    """By name: rows of the call. Names that end in _quick are compiled by every test run."""
    bf16 = torch.bfloat16
    return {
        "row_quick": partial(_experts, 1, bf16),
        "batch": partial(_experts, 64, bf16),
        "some_fp16": partial(_experts, 512, torch.float16),
        "prompt_quick": partial(_experts, 4096, bf16),
        "prompt_swiglu": partial(_experts, 4096, bf16, swiglu=(1.7, 7.0)),
        "many_experts": partial(_experts, 64, bf16, count=512, per_row=10, hidden=2048, inner=512),
        "fp32": partial(_experts, 64, torch.float32),
    }


def _experts(
    rows: int,
    dtype: torch.dtype,
    count: int = 128,
    per_row: int = 8,
    hidden: int = 4096,
    inner: int = 1536,
    swiglu: tuple[float, float] | None = None,
) -> object:
    """One call over so many rows."""

    def tensor(*shape: int, of: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=of, device="meta")

    weights = ExpertWeights(
        PackedHeads(tensor(count, 2 * inner, hidden, of=dtype), hidden, 2 * inner),
        PackedHeads(tensor(count, hidden, inner, of=dtype), inner, hidden),
        swiglu,
    )
    chosen = tensor(rows, per_row, of=torch.int64)
    return experts(tensor(rows, hidden, of=dtype), chosen, tensor(rows, per_row), weights)
