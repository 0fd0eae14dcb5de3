"""Calls of the Triton selection by pooled weights whose variants are compiled ahead of time, on
tensors that have shapes and no memory.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from ..select import Candidates
from ..summarize import slots_per_page
from .rule import Entries, PooledRule
from .triton import select_pooled

Call = Callable[[], object]


def cases() -> dict[str, Call]:
    """By name. Names that end in _quick are compiled by every test run."""
    bf16, rule = torch.bfloat16, PooledRule(96, 1, 33)
    relu = PooledRule(513, 0, 0, "relu")
    return {
        "pooled_infllm_quick": partial(_pooled, bf16, rule, coarse=(128, 64)),
        "pooled_exact": partial(_pooled, bf16, rule),
        "pooled_d64": partial(_pooled, bf16, rule, dim=64, heads=(9, 3)),
        "pooled_d256": partial(_pooled, bf16, rule, dim=256, heads=(16, 2), coarse=(128, 64)),
        "pooled_fp32": partial(_pooled, torch.float32, rule, coarse=(128, 64)),
        "pooled_qsa": partial(_pooled, bf16, relu, heads=(16, 1), fine=(4, 4, 4)),
    }


def _pooled(
    dtype: torch.dtype,
    rule: PooledRule,
    dim: int = 128,
    heads: tuple[int, int] = (32, 2),
    fine: tuple[int, int, int] = (32, 16, 64),
    coarse: tuple[int, int] | None = None,
) -> object:
    """One call over 2048 rows of two sequences, pages of 64 tokens; fine: size, stride, block."""

    def tensor(*shape: int, of: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=of, device="meta")

    def entries(size: int, stride: int) -> Entries:
        slots = slots_per_page(stride, 64, least=1)
        return Entries(tensor(16384, slots, heads[1], dim, of=dtype), size, stride)

    candidates = Candidates(
        tensor(3, of=torch.int32),
        tensor(2048, of=torch.int64),
        tensor(2, 2048, of=torch.int32),
        fine[2],
        64,
    )
    q = tensor(2048, heads[0], dim, of=dtype)
    rough = entries(*coarse) if coarse else None
    return select_pooled(q, entries(*fine[:2]), candidates, rule, dim**-0.5, rough)
