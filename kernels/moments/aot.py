"""Calls of the Triton moments whose variants are compiled ahead of time, on tensors that have
shapes and no memory.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from ..select import Candidates
from ..store import RowLayout
from .rule import MomentBlocks, MomentRule
from .triton import far_mass, key_moments

Call = Callable[[], object]


def cases() -> dict[str, Call]:
    """By name. Names that end in _quick are compiled by every test run."""
    bf16, fp32 = torch.bfloat16, torch.float32
    return {
        "moments_blocks_quick": partial(_moments, "blocks", bf16),
        "moments_diagonal": partial(_moments, "diagonal", bf16),
        "moments_full": partial(_moments, "full", bf16),
        "moments_full_d256": partial(_moments, "full", bf16, dim=256),
        "moments_fp32": partial(_moments, "full", fp32),
        "mass_blocks_quick": partial(_mass, "blocks", bf16),
        "mass_blocks_d256": partial(_mass, "blocks", bf16, dim=256, heads=(16, 8)),
        "mass_bounds": partial(_mass, "bounds", bf16),
        "mass_diagonal": partial(_mass, "diagonal", bf16),
        "mass_full": partial(_mass, "full", bf16),
        "mass_full_d256": partial(_mass, "full", bf16, dim=256, heads=(64, 2)),
        "mass_fp32": partial(_mass, "blocks", fp32),
    }


def _tensor(*shape: int, of: torch.dtype = torch.int64) -> torch.Tensor:
    return torch.empty(shape, dtype=of, device="meta")


def _moments(kind: str, dtype: torch.dtype, dim: int = 128) -> None:
    """One call over a chunk of two sequences, blocks and pages of 64 tokens."""
    rule = MomentRule(kind, 64, 16)
    table = _tensor(2, 2048, of=torch.int32)
    moments = _tensor(16384, 1, 8, rule.entry_rows(dim), dim, of=torch.float32)
    done = MomentBlocks(table, _tensor(2), _tensor(2), 32)
    key_moments(RowLayout(64), _tensor(16384, 8, 64, dim, of=dtype), moments, done, rule)


def _mass(
    kind: str, dtype: torch.dtype, dim: int = 128, heads: tuple[int, int] = (32, 8)
) -> object:
    """One call over 2048 rows of two sequences, blocks and pages of 64 tokens."""
    rule = MomentRule("blocks" if kind == "bounds" else kind, 64, 16)
    vectors, of = rule.entry_rows(dim), dtype if kind == "bounds" else torch.float32
    entries = _tensor(16384, 1, heads[1], vectors, dim, of=of)
    table = _tensor(2, 2048, of=torch.int32)
    candidates = Candidates(_tensor(3, of=torch.int32), _tensor(2048), table, 64, 64)
    q = _tensor(2048, heads[0], dim, of=dtype)
    return far_mass(q, entries, candidates, rule, kind, 1024, dim**-0.5)
