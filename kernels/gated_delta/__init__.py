"""The gated delta rule: linear attention whose state forgets, and corrects what it says wrong."""

from __future__ import annotations

import torch

from ..ops import Implementation, Op
from . import cpu, reference, triton
from .call import DeltaCall
from .walk import Walk

__all__ = ["GATED_DELTA", "DeltaCall", "Walk", "gated_delta"]

GATED_DELTA = Op(
    "gated_delta",
    reference.gated_delta,
    (
        Implementation("cpu", cpu.gated_delta, cpu.supports),
        Implementation("triton", triton.gated_delta, triton.supports),
    ),
)


def gated_delta(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    decay: torch.Tensor,
    beta: torch.Tensor,
    states: torch.Tensor,
    walk: Walk,
) -> torch.Tensor:
    """What every row reads of the state with its own key and value in it: [T, H, dv] of v's dtype.

    q, k: [T, Hk, d], each head serving H / Hk adjacent heads of v [T, H, dv]; decay, beta: float32
    [T, H]. With q and k divided by their lengths (and q by sqrt(d)), a row makes of the state S
    [d, dv] of a head S * decay + k (beta (v - decay S^T k))^T, and reads S^T q. states: float32
    [N, H, d, dv], which `walk` says where to read and write. In fp32, token by token, channels in
    ascending order: a row's bits depend on the rows before it alone.
    Raises ValueError when shapes, dtypes or the walk disagree.
    """
    rows, heads, v_dim = v.shape if v.ndim == 3 else (0, 0, 0)
    if q.ndim != 3 or k.shape != q.shape or q.shape[0] != rows or not rows:
        raise ValueError(
            "gated_delta needs q, k [T, Hk, d] and v [T, H, dv] of at least one row, got "
            f"{tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}"
        )
    if not q.shape[1] or heads % q.shape[1] or not q.dtype == k.dtype == v.dtype:
        raise ValueError(
            f"gated_delta: {heads} heads must be a multiple of {q.shape[1]} key heads, and q, k, v "
            "share a dtype"
        )
    for name, each in (("decay", decay), ("beta", beta)):
        if each.shape != (rows, heads) or each.dtype != torch.float32:
            raise ValueError(f"gated_delta: {name} must be float32 [{rows}, {heads}]")
    if states.shape[1:] != (heads, q.shape[2], v_dim) or states.dtype != torch.float32:
        raise ValueError(
            f"gated_delta: states must be float32 [N, {heads}, {q.shape[2]}, {v_dim}], "
            f"got {states.dtype} {tuple(states.shape)}"
        )
    walk.check(rows, states.shape[0])
    out: torch.Tensor = GATED_DELTA(DeltaCall(q, k, v, decay, beta, states, walk))
    return out
