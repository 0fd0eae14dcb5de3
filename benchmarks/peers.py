"""The peers: torch's scaled-dot-product attention in every form that computes the same thing.

All take q [B, H, T, d] and K, V [B, Hkv, L, d] and give [B, H, T, d]; repeating K and V is not
timed, although a model would have to do it in every layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as sdpa

from .timing import Run

# The math backend holds all scores: it is a peer where they fit in this many bytes.
MATH_BYTES = 1 << 28


@dataclass(frozen=True)
class Dense:
    """One attention problem as torch sees it. repeated: K and V once per query head, or None."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    mask: torch.Tensor | None = None
    causal: bool = False

    @property
    def group(self) -> int:
        """Query heads per KV head."""
        return self.q.shape[1] // self.k.shape[1]

    def scores_bytes(self) -> int:
        """Bytes of all scores in fp32."""
        return 4 * self.q.shape[0] * self.q.shape[1] * self.q.shape[2] * self.k.shape[2]


def variants(problem: Dense) -> dict[str, Run]:
    """Prefill and chunked prefill: K/V repeated or shared, torch's choice of backend or math."""
    p = problem
    k, v = (each.repeat_interleave(p.group, dim=1) for each in (p.k, p.v))
    runs: dict[str, Run] = {
        "torch sdpa, repeated": lambda: sdpa(p.q, k, v, p.mask, is_causal=p.causal),
        "torch sdpa, gqa": lambda: sdpa(p.q, p.k, p.v, p.mask, is_causal=p.causal, enable_gqa=True),
    }
    if p.scores_bytes() <= MATH_BYTES:
        runs["torch sdpa, math"] = lambda: _math(p, k, v)
    return runs


def _math(p: Dense, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        return sdpa(p.q, k, v, p.mask, is_causal=p.causal)


def window_variants(problem: Dense, window: int) -> dict[str, Run]:
    """Sliding window: a mask over everything, or the slices of keys that blocks of rows see."""
    p, length = problem, problem.q.shape[2]
    k, v = (each.repeat_interleave(p.group, dim=1) for each in (p.k, p.v))
    position = torch.arange(length)
    mask = window_mask(position, position, window)
    slices = [
        _slice(position, begin, min(begin + window, length), window)
        for begin in range(0, length, window)
    ]

    def sliced() -> torch.Tensor:
        parts = [
            sdpa(p.q[:, :, rows], k[:, :, keys], v[:, :, keys], each) for rows, keys, each in slices
        ]
        return torch.cat(parts, dim=2)

    return {"torch sdpa, mask": lambda: sdpa(p.q, k, v, mask), "torch sdpa, sliced": sliced}


def _slice(
    position: torch.Tensor, begin: int, end: int, window: int
) -> tuple[slice, slice, torch.Tensor]:
    rows, keys = slice(begin, end), slice(max(0, begin - window + 1), end)
    return rows, keys, window_mask(position[rows], position[keys], window)


def window_mask(queries: torch.Tensor, keys: torch.Tensor, window: int | None) -> torch.Tensor:
    """bool [queries, keys]: causal by position, and within the window if there is one."""
    distance = queries[:, None] - keys[None]
    mask = distance >= 0
    return mask if window is None else mask & (distance < window)


def decode_variants(problem: Dense) -> dict[str, Run]:
    """One query row a sequence: K/V shared, or a group's heads taken as rows of one head.

    K/V repeated reads `group` times the memory and is left to `variants`.
    """
    p = problem
    batch, heads, _, dim = p.q.shape
    grouped = p.q.view(batch, heads // p.group, p.group, dim)
    return {
        "torch sdpa, gqa": lambda: sdpa(p.q, p.k, p.v, enable_gqa=True),
        "torch sdpa, grouped": lambda: sdpa(grouped, p.k, p.v).view(batch, heads, 1, dim),
    }
