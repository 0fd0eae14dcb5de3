"""Gated activations by the compiled CPU kernels."""

from __future__ import annotations

from math import inf

import torch

from .. import native
from ..store import unwritten


def supports(*tensors: torch.Tensor) -> str | None:
    """None when the kernels can serve this call, otherwise the reason."""
    return native.unsupported(*tensors)


def silu_mul(x: torch.Tensor) -> torch.Tensor:
    """See `saccade.kernels.activation.silu_mul`."""
    return _gated(x, 1.0, inf, 0.0)


def supports_swiglu(x: torch.Tensor, alpha: float, limit: float) -> str | None:
    """None when the kernel can serve this call, otherwise the reason."""
    return native.unsupported(x)


def swiglu(x: torch.Tensor, alpha: float, limit: float) -> torch.Tensor:
    """See `saccade.kernels.activation.swiglu`."""
    return _gated(x, alpha, limit, 1.0)


def _gated(x: torch.Tensor, alpha: float, limit: float, shift: float) -> torch.Tensor:
    rows, width = x.shape[0], x.shape[1] // 2
    out = unwritten((rows, width), x.dtype)
    native.kernels().silu_mul(
        native.DTYPES[x.dtype],
        rows,
        width,
        x.data_ptr(),
        x.stride(0),
        alpha,
        limit,
        shift,
        out.data_ptr(),
    )
    return out


def sigmoid_mul(x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """See `saccade.kernels.activation.sigmoid_mul`."""
    rows, width = x.shape
    out = unwritten((rows, width), x.dtype)
    native.kernels().sigmoid_mul(
        native.DTYPES[x.dtype],
        rows,
        width,
        width // gate.shape[1],
        x.data_ptr(),
        x.stride(0),
        gate.data_ptr(),
        gate.stride(0),
        out.data_ptr(),
    )
    return out
