"""Gated SiLU by the compiled CPU kernel."""

from __future__ import annotations

import torch

from .. import native


def supports(x: torch.Tensor) -> str | None:
    """None when the kernel can serve this call, otherwise the reason."""
    return native.unsupported(x)


def silu_mul(x: torch.Tensor) -> torch.Tensor:
    """See `saccade.kernels.activation.silu_mul`."""
    rows, width = x.shape[0], x.shape[1] // 2
    out = torch.empty((rows, width), dtype=x.dtype)
    native.kernels().silu_mul(
        native.DTYPES[x.dtype], rows, width, x.data_ptr(), x.stride(0), out.data_ptr()
    )
    return out
