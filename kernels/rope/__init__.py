"""Rotary position embedding, applied in place."""

from __future__ import annotations

import torch

from ..ops import Implementation, Op
from . import cpu, reference, triton

APPLY_ROPE = Op(
    "apply_rope",
    reference.apply_rope,
    (
        Implementation("cpu", cpu.apply_rope, cpu.supports),
        Implementation("triton", triton.apply_rope, triton.supports),
    ),
)


def apply_rope(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    """Rotates the first r dimensions of every head of q and k in place (rotate-half pairs, NeoX
    order).

    q: [T, H, d]; k: [T, Hkv, d]; cos, sin: float32 [T, r/2], one row per token. Element i of the
    first half is paired with element i + r/2. Computed in fp32, rounded once. Raises ValueError
    when shapes disagree.
    """
    if q.ndim != 3 or k.ndim != 3:
        raise ValueError(
            "apply_rope needs q [T, H, d] and k [T, Hkv, d], "
            f"got {tuple(q.shape)}, {tuple(k.shape)}"
        )
    rotary = 2 * cos.shape[-1]
    if (
        cos.ndim != 2
        or cos.shape != sin.shape
        or not cos.dtype == sin.dtype == torch.float32
        or cos.shape[0] != q.shape[0]
    ):
        raise ValueError(
            f"apply_rope needs float32 cos, sin [T, r/2], "
            f"got {tuple(cos.shape)}, {tuple(sin.shape)}"
        )
    if q.shape[0] != k.shape[0] or rotary > min(q.shape[-1], k.shape[-1]):
        raise ValueError(
            f"apply_rope: q {tuple(q.shape)}, k {tuple(k.shape)} do not fit {rotary} rotary dims"
        )
    APPLY_ROPE(q, k, cos, sin)
