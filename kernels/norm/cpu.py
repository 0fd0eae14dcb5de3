"""RMS norm by the compiled CPU kernel."""

from __future__ import annotations

import torch

from .. import native
from ..store import unwritten


def supports(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    residual: torch.Tensor | None = None,
    offset: float = 0.0,
) -> str | None:
    """None when the kernel can serve this call, otherwise the reason."""
    if weight.dtype != x.dtype or (residual is not None and residual.dtype != x.dtype):
        return "mixed dtypes"
    return native.unsupported(x, weight, residual)


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    residual: torch.Tensor | None = None,
    offset: float = 0.0,
) -> torch.Tensor:
    """See `saccade.kernels.norm.rms_norm`."""
    out = unwritten(x.shape, x.dtype)
    native.kernels().rms_norm(
        native.DTYPES[x.dtype],
        x.shape[0],
        x.shape[1],
        x.data_ptr(),
        x.stride(0),
        weight.data_ptr(),
        eps,
        offset,
        residual.data_ptr() if residual is not None else 0,
        residual.stride(0) if residual is not None else 0,
        out.data_ptr(),
    )
    return out
