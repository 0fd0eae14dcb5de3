"""Calls of the Triton compressed attention whose variants are compiled ahead of time, on tensors
that have shapes and no memory.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from ..select import Candidates
from .call import CompressedCall
from .lists import ListRule, Spans
from .triton import compressed

Call = Callable[[], object]


def cases() -> dict[str, Call]:
    """By name. Names that end in _quick are compiled by every test run."""
    bf16, fp32 = torch.bfloat16, torch.float32
    nsa, rule = Spans(32, 16), ListRule(16, 1, 2)
    return {
        "compressed_nsa_quick": partial(_compressed, bf16, nsa, rule),
        "compressed_nsa_d64": partial(_compressed, bf16, nsa, rule, dim=64, heads=(9, 3)),
        "compressed_nsa_d192": partial(_compressed, bf16, nsa, rule, dim=192, heads=(64, 4)),
        "compressed_nsa_fp32": partial(_compressed, fp32, nsa, rule),
        "compressed_means": partial(_compressed, bf16, Spans(64, 64), rule, value_dim=0),
        "compressed_heaviest": partial(_compressed, bf16, Spans(32, 16, "max"), ListRule(64, 1, 2)),
        "compressed_only": partial(_compressed, bf16, nsa, None),
        "compressed_latent": partial(
            _compressed, bf16, Spans(64, 64), rule, dim=576, heads=(64, 4), value_dim=512
        ),
    }


def _compressed(
    dtype: torch.dtype,
    spans: Spans,
    rule: ListRule | None,
    dim: int = 128,
    heads: tuple[int, int] = (32, 8),
    value_dim: int | None = None,
) -> object:
    """One call over 4096 rows of two sequences, blocks and pages of 64 tokens."""

    def tensor(*shape: int, of: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=of, device="meta")

    candidates = Candidates(
        tensor(3, of=torch.int32),
        tensor(4096, of=torch.int64),
        tensor(2, 2048, of=torch.int32),
        64,
        64,
    )
    values = min(dim, 128) if value_dim is None else value_dim
    shared = dim > 256
    width = dim if shared else dim + values
    entries = tensor(16384, spans.slots(64), heads[1], width, of=dtype)
    q = tensor(4096, heads[0], dim, of=dtype)
    first = 0 if shared else dim
    return compressed(CompressedCall(q, entries, candidates, rule, dim**-0.5, values, spans, first))
