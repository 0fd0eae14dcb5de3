"""Gated activations: SiLU in the feed-forward layer, sigmoid on the output of attention."""

from __future__ import annotations

import torch

from ..ops import Implementation, Op
from . import cpu, reference, triton

SILU_MUL = Op(
    "silu_mul",
    reference.silu_mul,
    (
        Implementation("cpu", cpu.silu_mul, cpu.supports),
        Implementation("triton", triton.silu_mul, triton.supports),
    ),
)
SWIGLU = Op(
    "swiglu",
    reference.swiglu,
    (
        Implementation("cpu", cpu.swiglu, cpu.supports_swiglu),
        Implementation("triton", triton.swiglu, triton.supports_swiglu),
    ),
)
SIGMOID_MUL = Op(
    "sigmoid_mul",
    reference.sigmoid_mul,
    (
        Implementation("cpu", cpu.sigmoid_mul, cpu.supports),
        Implementation("triton", triton.sigmoid_mul, triton.supports_sigmoid),
    ),
)


def silu_mul(x: torch.Tensor) -> torch.Tensor:
    """silu(x[:, :n]) * x[:, n:] for x [T, 2n] -> [T, n], in fp32, rounded once. ValueError for an
    odd width.
    """
    if x.ndim != 2 or x.shape[1] % 2:
        raise ValueError(f"silu_mul needs x [T, 2n], got {tuple(x.shape)}")
    out: torch.Tensor = SILU_MUL(x)
    return out


def swiglu(x: torch.Tensor, alpha: float, limit: float) -> torch.Tensor:
    """g * sigmoid(alpha * g) * (1 + u) for x [T, 2n] -> [T, n], in fp32, rounded once.

    g: x[:, :n], at most `limit`; u: x[:, n:], within +-limit. ValueError for an odd width, or a
    limit that is not positive.
    """
    if x.ndim != 2 or x.shape[1] % 2 or not limit > 0:
        raise ValueError(f"swiglu needs x [T, 2n] and limit > 0, got {tuple(x.shape)}, {limit}")
    out: torch.Tensor = SWIGLU(x, alpha, limit)
    return out


def sigmoid_mul(x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """x [T, n] times the sigmoid of gate [T, g], each gate for n / g adjacent channels of x.

    In fp32, rounded once; an element does not depend on where it lies. Raises ValueError when
    shapes or dtypes disagree.
    """
    if (
        x.ndim != 2
        or gate.ndim != 2
        or x.shape[0] != gate.shape[0]
        or not gate.shape[1]
        or x.shape[1] % gate.shape[1]
        or x.dtype != gate.dtype
    ):
        raise ValueError(
            "sigmoid_mul needs x [T, n] and gate [T, g] of one dtype, g a divisor of n, "
            f"got {x.dtype} {tuple(x.shape)} and {gate.dtype} {tuple(gate.shape)}"
        )
    out: torch.Tensor = SIGMOID_MUL(x, gate)
    return out
