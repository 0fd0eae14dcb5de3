"""Calls of the Triton scaling of the first key whose variants are compiled ahead of time, on
tensors that have shapes and no memory.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from .call import FirstCall
from .triton import scale_first

Call = Callable[[], object]


def cases() -> dict[str, Call]:
    """By name. Names that end in _quick are compiled by every test run."""
    bf16 = torch.bfloat16
    return {
        "first_quick": partial(_first, bf16),
        "first_capped": partial(_first, bf16, softcap=30.0, seen=True),
        "first_d256": partial(_first, torch.float16, dim=256),
        "first_many": partial(_first, bf16, sequences=256, seen=True),
        "first_fp32": partial(_first, torch.float32),
    }


def _first(
    dtype: torch.dtype,
    dim: int = 128,
    sequences: int = 2,
    softcap: float | None = None,
    seen: bool = False,
) -> object:
    """One call over 4096 rows."""

    def tensor(*shape: int, of: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=of, device="meta")

    first = tensor(sequences, 8, dim, of=dtype)
    call = FirstCall(
        tensor(4096, 32, dim, of=dtype),
        tensor(4096, 32, dim),
        tensor(4096, 32),
        first,
        first,
        tensor(sequences + 1, of=torch.int32),
        tensor(32),
        dim**-0.5,
        softcap,
        tensor(4096, 32, of=torch.bool) if seen else None,
    )
    return scale_first(call)
