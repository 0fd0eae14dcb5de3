"""The weight of a sequence's first token, scaled after attention."""

from __future__ import annotations

from math import inf

import torch

from ..ops import Implementation, Op
from . import cpu, reference, triton
from .call import FirstCall

__all__ = ["SCALE_FIRST", "FirstCall", "scale_first"]

SCALE_FIRST = Op(
    "scale_first",
    reference.scale_first,
    (
        Implementation("cpu", cpu.scale_first, cpu.supports),
        Implementation("triton", triton.scale_first, triton.supports),
    ),
)


def scale_first(
    q: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_rows: torch.Tensor,
    gains: torch.Tensor,
    scale: float,
    softcap: float | None = None,
    seen: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention as if the first key's weight had been multiplied by gains[h] before the softmax's
    sum: what adding log(gain) to its logit gives, computed from the finished result.

    q: [T, H, d]; out float32 [T, H, dv] and lse float32 [T, H]: what attention gave, with `scale`
    and `softcap`; k [S, Hkv, d], v [S, Hkv, dv]: the first key and value of each sequence, of q's
    dtype; cu_rows: int32 [S+1]; gains: float32 [H], positive; seen: bool [T, H], which rows and
    heads had the first key among theirs, None: all. Others, and heads of gain 1, come back as they
    are. Returns out of q's dtype, rounded once, and lse. ValueError when shapes or types disagree.
    """
    rows, heads, dim = q.shape if q.ndim == 3 else (-1, 0, 0)
    wanted = {
        "out": (out, (rows, heads, v.shape[-1]), torch.float32),
        "lse": (lse, (rows, heads), torch.float32),
        "k": (k, (cu_rows.shape[0] - 1, *k.shape[1:2], dim), q.dtype),
        "v": (v, (*k.shape[:2], *v.shape[2:3]), q.dtype),
        "gains": (gains, (heads,), torch.float32),
        "seen": (seen, (rows, heads), torch.bool),
    }
    for name, (tensor, shape, dtype) in wanted.items():
        if tensor is not None and (tensor.shape != shape or tensor.dtype != dtype):
            raise ValueError(
                f"scale_first: {name} must be {dtype} {shape}, got {tensor.dtype} "
                f"{tuple(tensor.shape)}"
            )
    if not k.shape[1] or heads % k.shape[1] or cu_rows.dtype != torch.int32:
        raise ValueError(
            f"scale_first: {heads} query heads, {k.shape[1]} KV heads, cu_rows {cu_rows.dtype}"
        )
    if not 0.0 < scale < inf or (softcap is not None and not 0.0 < softcap < inf):
        raise ValueError(f"scale_first: scale {scale} and softcap {softcap} must be positive")
    call = FirstCall(q, out, lse, k, v, cu_rows, gains, scale, softcap, seen)
    result: tuple[torch.Tensor, torch.Tensor] = SCALE_FIRST(call)
    return result
