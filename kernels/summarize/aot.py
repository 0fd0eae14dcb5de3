"""Calls of the Triton summaries whose variants are compiled ahead of time, on tensors that have
shapes and no memory.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from ..store import RowLayout
from .blocks import CompletedBlocks
from .triton import window_means

Call = Callable[[], object]


def cases() -> dict[str, Call]:
    """By name. Names that end in _quick are compiled by every test run."""
    return {
        "means_512_quick": partial(_means, 512, 512, torch.bfloat16),
        "means_32_16": partial(_means, 32, 16, torch.float16),
        "means_fp32": partial(_means, 64, 64, torch.float32),
        "means_latent": partial(_means, 64, 64, torch.bfloat16, dim=576),
    }


def _means(block: int, stride: int, dtype: torch.dtype, dim: int = 128) -> None:
    """One call over keys and values of eight heads (of a latent: over keys alone)."""

    def tensor(*shape: int, of: torch.dtype = torch.int64) -> torch.Tensor:
        return torch.empty(shape, dtype=of, device="meta")

    v_dim = 0 if dim > 256 else 128
    k = tensor(16384, 8, 64, dim, of=dtype)
    v = tensor(16384, 8, 64, v_dim, of=dtype)
    means = tensor(16384, max(64 // stride, 1), 8, dim + v_dim, of=dtype)
    done = CompletedBlocks(block, tensor(32, block // 64 + 1), tensor(32), tensor(32), stride)
    window_means(RowLayout(64), k, v, means, done)
