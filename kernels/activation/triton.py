"""Gated activations on a GPU."""

from __future__ import annotations

import torch

from .. import gpu
from .. import triton_sizes as sizes

RUN = 1024  # channels of a program, at most


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
    from ..triton_rowwise import gated_units

    rows, n = x.shape[0], x.shape[1] // 2
    out = x.new_empty((rows, n))
    if out.numel():
        run = min(sizes.power_of_two(n), RUN)
        tile = sizes.rows_of(run)
        gated_units[(-(-rows // tile), -(-n // run))](
            x,
            out,
            x.stride(0),
            rows,
            n,
            float(alpha),
            float(limit),
            BR=tile,
            BN=run,
            CLAMP=clamp,
            num_warps=4,
        )
    return out


def sigmoid_mul(x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """See `saccade.kernels.activation.sigmoid_mul`."""
    from ..triton_rowwise import gated_outputs

    rows, n = x.shape
    out = x.new_empty((rows, n))
    if out.numel():
        run = min(sizes.power_of_two(n), RUN)
        tile = sizes.rows_of(run)
        gated_outputs[(-(-rows // tile), -(-n // run))](
            x,
            gate,
            out,
            x.stride(0),
            gate.stride(0),
            rows,
            n,
            n // gate.shape[1],
            BR=tile,
            BN=run,
            num_warps=4,
        )
    return out
