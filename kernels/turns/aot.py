"""Calls of the Triton attention over changing lists whose variants are compiled ahead of time, on
tensors that have shapes and no memory.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from ..attend import Keys
from ..store import RowLayout
from .call import TurnsCall
from .triton import attend_as_were

Call = Callable[[], object]


def cases() -> dict[str, Call]:
    """By name. Names that end in _quick are compiled by every test run."""
    return {
        "turns_d128_quick": partial(_turns, torch.bfloat16, 128, 64),
        "turns_page": partial(_turns, torch.float16, 64, 16),
        "turns_d256": partial(_turns, torch.bfloat16, 256, 64),
        "turns_fp32": partial(_turns, torch.float32, 128, 64),
    }


def _turns(dtype: torch.dtype, dim: int, page: int) -> object:
    """One call over 2048 rows of 32 lists of up to 4096 tokens."""

    def tensor(*shape: int, of: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=of, device="meta")

    rows = (tensor(2048, 1, dim), tensor(2048, 1, dim), tensor(2048, 1, dim))
    pages = (tensor(16384, 1, page, dim), tensor(16384, 1, page, dim))
    keys = Keys(
        tensor(33, of=torch.int32),
        tensor(2048, of=torch.int64),
        tensor(32, 4096 // page, of=torch.int32),
        hi=tensor(2048, of=torch.int32),
    )
    slots, replaces = tensor(2048, of=torch.int64), tensor(2048, of=torch.bool)
    layout = RowLayout(page)
    return attend_as_were(TurnsCall(layout, rows, pages, keys, slots, replaces, dim**-0.5))
