"""Calls of the Triton gated delta rule whose variants are compiled ahead of time, on tensors that
have shapes and no memory.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from .call import DeltaCall
from .triton import gated_delta
from .walk import Walk

Call = Callable[[], object]


def cases() -> dict[str, Call]:
    """By name. Names that end in _quick are compiled by every test run."""
    bf16 = torch.bfloat16
    return {
        "rule_quick": partial(_rule, bf16),
        "rule_d256": partial(_rule, torch.float16, dim=256),
        "rule_fp32": partial(_rule, torch.float32),
    }


def _rule(dtype: torch.dtype, dim: int = 128) -> object:
    """One call over 64 rows of eight sequences."""

    def tensor(*shape: int, of: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=of, device="meta")

    key, gate = tensor(64, 16, dim, of=dtype), tensor(64, 32)
    numbers = [tensor(n, of=torch.int64) for n in (9, 64, 8, 64)]
    value, states = tensor(64, 32, 128, of=dtype), tensor(512, 32, dim, 128)
    return gated_delta(DeltaCall(key, key, value, gate, gate, states, Walk(*numbers)))
