"""Calls of the Triton page writes whose variants are compiled ahead of time, on tensors that have
shapes and no memory.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from .call import WriteCall
from .rows import RowLayout
from .triton import write_pages

Call = Callable[[], object]


def cases() -> dict[str, Call]:
    """By name. Names that end in _quick are compiled by every test run."""
    return {
        "write_d128_quick": partial(_write, torch.bfloat16, 128, 128),
        "write_latent": partial(_write, torch.float16, 576, 0),
    }


def _write(dtype: torch.dtype, dim: int, v_dim: int) -> None:
    """One call over 4096 rows of eight heads."""

    def tensor(*shape: int, of: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=of, device="meta")

    layout, slots = RowLayout(64), tensor(4096, of=torch.int64)
    pages = (tensor(16384, 8, 64, dim), tensor(16384, 8, 64, v_dim))
    new = (tensor(4096, 8, dim), tensor(4096, 8, v_dim))
    write_pages(WriteCall(layout, *pages, *new, slots))
