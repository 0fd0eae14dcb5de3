"""Convolution of rows over the tokens before them, each channel on its own."""

from __future__ import annotations

import torch

from ..ops import Implementation, Op
from . import cpu, reference, triton

MOST_TAPS = 16

KEY_CONV = Op(
    "key_conv",
    reference.key_conv,
    (
        Implementation("cpu", cpu.key_conv, cpu.supports),
        Implementation("triton", triton.key_conv, triton.supports),
    ),
)


def key_conv(
    k: torch.Tensor,
    history: torch.Tensor,
    before: torch.Tensor,
    weight: torch.Tensor,
    residual: bool = True,
) -> torch.Tensor:
    """k[t] + silu(sum over l of weight[l] * the key l tokens before row t): [T, Hkv, d].

    residual: False: without k[t] itself.

    k: [T, Hkv, d], not changed; weight: [taps, Hkv, d]; before: int64 [T, taps - 1], where the key
    1, 2 ... tokens before each row lies: r >= 0 in row r of k, -1 nowhere (zero), -2 - i in row i
    of history [n, Hkv, d]. In fp32, taps in this order, rounded once; a row depends on its own keys
    alone. Raises ValueError when shapes or dtypes disagree or there are more than 16 taps.
    """
    taps, heads = weight.shape[0], k.shape[1:]
    if k.ndim != 3 or weight.shape[1:] != heads or history.shape[1:] != heads:
        raise ValueError(
            "key_conv needs k [T, Hkv, d], history [n, Hkv, d] and weight [taps, Hkv, d], "
            f"got {tuple(k.shape)}, {tuple(history.shape)} and {tuple(weight.shape)}"
        )
    if not k.dtype == history.dtype == weight.dtype or before.dtype != torch.int64:
        raise ValueError("key_conv: k, history and weight must share a dtype, before be int64")
    if not 1 <= taps <= MOST_TAPS or before.shape != (k.shape[0], taps - 1):
        raise ValueError(
            f"key_conv: {taps} taps must be from 1 to {MOST_TAPS} and before [T, taps - 1], "
            f"not {tuple(before.shape)}"
        )
    out: torch.Tensor = KEY_CONV(k, history, before, weight, residual)
    return out
