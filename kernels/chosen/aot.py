"""Calls of the Triton projections of chosen rows whose variants are compiled ahead of time, on
tensors that have shapes and no memory.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from ..linear import PackedHeads
from .triton import add_chosen, project_chosen

Call = Callable[[], object]


def cases() -> dict[str, Call]:
    """By name. Names that end in _quick are compiled by every test run."""
    return {
        "project_quick": partial(_project, torch.bfloat16),
        "project_fp32": partial(_project, torch.float32),
        "add_quick": partial(_add, torch.bfloat16),
        "add_fp16": partial(_add, torch.float16),
    }


def _tensor(*shape: int, of: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=of, device="meta")


def _project(dtype: torch.dtype) -> object:
    """A row of each of 64 sequences for 32 heads of 128 channels."""
    weight = PackedHeads(_tensor(32, 384, 4096, of=dtype), 4096, 384)
    return project_chosen(_tensor(64, 4096, of=dtype), weight, _tensor(32, 64, of=torch.bool))


def _add(dtype: torch.dtype) -> None:
    """Back to 4096 channels."""
    weight = PackedHeads(_tensor(32, 4096, 128, of=dtype), 128, 4096)
    total, y = _tensor(64, 4096, of=torch.float32), _tensor(32, 64, 128, of=dtype)
    add_chosen(total, y, weight, _tensor(32, 64, of=torch.bool))
