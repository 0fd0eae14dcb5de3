"""Gated sums on a GPU."""

from __future__ import annotations

import torch

from .. import gpu
from .. import triton_sizes as sizes


def supports(parts: tuple[torch.Tensor, ...], gates: torch.Tensor) -> str | None:
    """None when the kernel can serve this call, otherwise the reason."""
    if not all(part.is_contiguous() for part in parts):
        return "parts are not contiguous"
    if gates.stride(0) != gates.shape[1] * gates.stride(1):
        return "gates of tokens and heads are not evenly spaced"
    return gpu.triton_refusal(*parts, gates)


def gated_sum(parts: tuple[torch.Tensor, ...], gates: torch.Tensor) -> torch.Tensor:
    """See `saccade.kernels.gate.gated_sum`."""
    from ..triton_rowwise import gate_heads

    out = torch.empty_like(parts[0])
    rows, heads, v_dim = out.shape
    if not out.numel():
        return out
    width = sizes.power_of_two(v_dim)
    tile = sizes.rows_of(width)
    gate_heads[(-(-rows * heads // tile),)](
        *(parts[i] if i < len(parts) else None for i in range(4)),
        gates,
        out,
        gates.stride(1),
        rows * heads,
        PARTS=len(parts),
        DV=v_dim,
        BDV=width,
        BR=tile,
        num_warps=4,
    )
    return out
