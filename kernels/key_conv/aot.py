"""Calls of the Triton convolution of keys whose variants are compiled ahead of time, on tensors
that have shapes and no memory.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from .triton import key_conv

Call = Callable[[], object]


def cases() -> dict[str, Call]:
    """By name. Names that end in _quick are compiled by every test run."""
    bf16 = torch.bfloat16
    return {
        "rows_quick": partial(_convolution, 4096, 4, bf16),
        "one_row": partial(_convolution, 1, 4, bf16, residual=False),
        "taps_16": partial(_convolution, 64, 16, torch.float16),
        "rows_fp32": partial(_convolution, 64, 4, torch.float32),
    }


def _convolution(rows: int, taps: int, dtype: torch.dtype, residual: bool = True) -> object:
    """One call over rows of eight heads of 128 channels."""

    def tensor(*shape: int, of: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=of, device="meta")

    k, history, weight = (tensor(n, 8, 128) for n in (rows, 32, taps))
    return key_conv(k, history, tensor(rows, taps - 1, of=torch.int64), weight, residual)
