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
    from ..triton_rowwise import gate_rows

    out = torch.empty_like(parts[0])
    rows, heads, v_dim = out.shape
    if not out.numel():
        return out
    gate_rows[(rows,)](
        *(parts[i] if i < len(parts) else None for i in range(4)),
        gates,
        out,
        gates.stride(1),
        heads,
        PARTS=len(parts),
        DV=v_dim,
        BDV=sizes.power_of_two(v_dim),
        BH=sizes.power_of_two(heads),
        num_warps=sizes.row_warps(heads * v_dim),
    )
    return out
