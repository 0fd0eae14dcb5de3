"""RMS norm on a GPU."""

from __future__ import annotations

import torch

from .. import gpu
from .. import triton_sizes as sizes

MOST = 16384  # channels that one program keeps in registers


def supports(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    residual: torch.Tensor | None = None,
    offset: float = 0.0,
) -> str | None:
    """None when the kernel can serve this call, otherwise the reason."""
    if x.shape[1] > MOST:
        return f"more than {MOST} channels"
    if residual is not None and residual.dtype != x.dtype:
        return "a residual of another dtype"
    return gpu.triton_refusal(x, weight, residual)


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    residual: torch.Tensor | None = None,
    offset: float = 0.0,
) -> torch.Tensor:
    """See `saccade.kernels.norm.rms_norm`."""
    from ..triton_rowwise import norm_rows

    rows, n = x.shape
    out = x.new_empty((rows, n))
    if rows:
        width = sizes.power_of_two(n)
        tile = sizes.rows_of(width)
        norm_rows[(-(-rows // tile),)](
            x,
            weight,
            residual,
            out,
            x.stride(0),
            0 if residual is None else residual.stride(0),
            rows,
            n,
            float(eps),
            float(offset),
            BR=tile,
            BN=width,
            ADD=residual is not None,
            num_warps=sizes.row_warps(tile * width),
        )
    return out
