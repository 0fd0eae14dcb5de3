"""Calls of attention by blocks of keys whose variants are compiled ahead of time, on tensors that
have shapes and no memory.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from ..store import RowLayout
from .call import AttendCall
from .gather import attend
from .keys import BlockLists, Keys

Call = Callable[[], object]


def cases() -> dict[str, Call]:
    """By name. Names that end in _quick are compiled by every test run."""
    bf16, fp16 = torch.bfloat16, torch.float16
    return {
        "gather_moba512_quick": partial(_gather, 512, 8, 32, bf16),
        "gather_moba128": partial(_gather, 128, 8, 32, bf16),
        "gather_nsa64": partial(_gather, 64, 16, 8, bf16),
        "gather_nsa64_group16": partial(_gather, 64, 16, 4, bf16, heads=(64, 4)),
        "gather_d64": partial(_gather, 512, 8, 9, bf16, heads=(9, 3), dim=64),
        "gather_d192_dv128": partial(_gather, 64, 16, 4, bf16, heads=(64, 4), dim=192),
        "gather_d256": partial(_gather, 512, 8, 8, bf16, dim=256),
        "gather_fp16_softcap_sinks": partial(_gather, 512, 8, 32, fp16, options=True),
    }


def _gather(
    block: int,
    columns: int,
    owners: int,
    dtype: torch.dtype,
    heads: tuple[int, int] = (32, 8),
    dim: int = 128,
    options: bool = False,
) -> object:
    """One call over 4096 rows of two sequences. options: with a softcap and sink logits."""

    def tensor(*shape: int, of: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=of, device="meta")

    layout = RowLayout(64)
    v_dim = 128 if dim == 192 else dim
    k = tensor(16384, heads[1], 64, dim, of=dtype)
    v = tensor(16384, heads[1], 64, v_dim, of=dtype)
    keys = Keys(
        tensor(3, of=torch.int32),
        tensor(4096, of=torch.int64),
        tensor(2, 2048, of=torch.int32),
        blocks=BlockLists(tensor(4096, owners, columns, of=torch.int32), None, block),
    )
    q = tensor(4096, heads[0], dim, of=dtype)
    sinks = tensor(heads[0], of=torch.float32) if options else None
    softcap = 30.0 if options else None
    return attend(AttendCall(layout, q, k, v, keys, dim**-0.5, dtype, softcap, sinks))
