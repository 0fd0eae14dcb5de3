"""Calls of the Triton selection by key scores whose variants are compiled ahead of time, on tensors
that have shapes and no memory.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from ..select import Candidates
from ..store import RowLayout
from .rule import KeyRule
from .triton import select_keys

Call = Callable[[], object]


def cases() -> dict[str, Call]:
    """By name. Names that end in _quick are compiled by every test run."""
    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    mass = KeyRule(128, 1, 32, "mean_prob")
    return {
        "keys_16_128_quick": partial(_select, 16, KeyRule(128, 1, 32), bf16),
        "keys_per_head": partial(_select, 16, KeyRule(256, union="per_head"), fp16),
        "keys_512": partial(_select, 512, KeyRule(4, union="per_head"), bf16),
        "keys_d64": partial(_select, 64, KeyRule(32, 1, 8), bf16, dim=64, heads=(9, 3)),
        "keys_d256": partial(_select, 64, KeyRule(32, 1, 8), bf16, dim=256, heads=(64, 2)),
        "keys_mass": partial(_select, 16, mass, bf16),
        "keys_mass_d256": partial(_select, 64, mass, bf16, dim=256, heads=(64, 2)),
        "keys_mass_512": partial(_select, 512, KeyRule(4, 0, 1, "mean_prob"), fp16),
        "keys_fp32": partial(_select, 16, KeyRule(128, 1, 32), fp32),
    }


def _select(
    block: int, rule: KeyRule, dtype: torch.dtype, dim: int = 128, heads: tuple[int, int] = (32, 8)
) -> object:
    """One call over a row of each of eight sequences of up to 128K tokens."""

    def tensor(*shape: int, of: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=of, device="meta")

    candidates = Candidates(
        tensor(9, of=torch.int32),
        tensor(8, of=torch.int64),
        tensor(8, 2048, of=torch.int32),
        block,
        64,
    )
    k, q = tensor(16384, heads[1], 64, dim, of=dtype), tensor(8, heads[0], dim, of=dtype)
    lse = tensor(8, heads[0], of=torch.float32)
    return select_keys(RowLayout(64), q, k, candidates, rule, dim**-0.5, lse)
