"""Gated activations on a GPU."""

from __future__ import annotations

import torch

from .. import gpu

RUN = 1024  # channels of a program


def supports(x: torch.Tensor) -> str | None:
    """None when the kernel can serve this call, otherwise the reason."""
    return gpu.triton_refusal(x)


def supports_swiglu(x: torch.Tensor, alpha: float, limit: float) -> str | None:
    """None when the kernel can serve this call, otherwise the reason."""
    return gpu.triton_refusal(x)


def supports_sigmoid(x: torch.Tensor, gate: torch.Tensor) -> str | None:
    """None when the kernel can serve this call, otherwise the reason."""
    return gpu.triton_refusal(x, gate)


def silu_mul(x: torch.Tensor) -> torch.Tensor:
    """See `saccade.kernels.activation.silu_mul`."""
    return _gated_unit(x, 1.0, 1.0, False)


def swiglu(x: torch.Tensor, alpha: float, limit: float) -> torch.Tensor:
    """See `saccade.kernels.activation.swiglu`."""
    return _gated_unit(x, alpha, limit, True)


def _gated_unit(x: torch.Tensor, alpha: float, limit: float, clamp: bool) -> torch.Tensor:
    from ..triton_rowwise import gated_unit

    rows, n = x.shape[0], x.shape[1] // 2
    out = x.new_empty((rows, n))
    if out.numel():
        gated_unit[(rows, -(-n // RUN))](
            x, out, x.stride(0), n, float(alpha), float(limit), BN=RUN, CLAMP=clamp, num_warps=4
        )
    return out


def sigmoid_mul(x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """See `saccade.kernels.activation.sigmoid_mul`."""
    from ..triton_rowwise import gated_output

    rows, n = x.shape
    out = x.new_empty((rows, n))
    if out.numel():
        gated_output[(rows, -(-n // RUN))](
            x,
            gate,
            out,
            x.stride(0),
            gate.stride(0),
            n,
            n // gate.shape[1],
            BN=RUN,
            num_warps=4,
        )
    return out
