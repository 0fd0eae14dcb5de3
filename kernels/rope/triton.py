"""Rotary embedding on a GPU."""

from __future__ import annotations

import torch

from .. import gpu
from .. import triton_sizes as sizes


def supports(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> str | None:
    """None when the kernel can serve this call, otherwise the reason."""
    if not (cos.is_contiguous() and sin.is_contiguous()):
        return "cos or sin is not contiguous"
    return gpu.triton_refusal(q, k, cos, sin)


def apply_rope(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    """See `saccade.kernels.rope.apply_rope`."""
    from ..triton_rowwise import rotate_heads

    half = cos.shape[1]
    for x in (q, k):
        rows, heads, _ = x.shape
        if not rows or not heads or not half:
            continue
        width = sizes.power_of_two(half)
        tile = sizes.rows_of(2 * width)
        rotate_heads[(-(-rows * heads // tile),)](
            x,
            cos,
            sin,
            *x.stride()[:2],
            rows,
            heads,
            half,
            BR=tile,
            BH=width,
            num_warps=4,
        )
