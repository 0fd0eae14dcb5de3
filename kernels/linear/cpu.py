"""A linear layer by the compiled CPU kernel."""

from __future__ import annotations

import torch

from .. import native
from ..store import unwritten
from .packed import PackedHeads, PackedWeight


def supports(x: torch.Tensor, weight: PackedWeight, out_dtype: torch.dtype) -> str | None:
    """None when the kernel can serve this call, otherwise the reason."""
    if out_dtype not in (x.dtype, torch.float32):
        return f"output {out_dtype} for input {x.dtype}"
    if x.dtype == torch.bfloat16 and x.shape[1] % 2:
        return "odd number of bf16 inputs"
    if weight.data.ndim == 2:
        return "the weight is not packed"
    return native.unsupported(x, weight.data)


def linear(x: torch.Tensor, weight: PackedWeight, out_dtype: torch.dtype) -> torch.Tensor:
    """See `saccade.kernels.linear.linear`."""
    out = unwritten((x.shape[0], weight.out_features), out_dtype)
    native.kernels().linear(
        native.DTYPES[x.dtype],
        native.DTYPES[out_dtype],
        x.shape[0],
        weight.in_features,
        weight.out_features,
        x.data_ptr(),
        x.stride(0),
        weight.data.data_ptr(),
        weight.bias.data_ptr() if weight.bias is not None else 0,
        out.data_ptr(),
        *(out.stride(0), 1, 0, 0),  # one head
    )
    return out


def supports_heads(x: torch.Tensor, weight: PackedHeads, out: torch.Tensor) -> str | None:
    """None when the kernel can serve this call, otherwise the reason."""
    if x.stride(2) != 1 or out.stride(2) != 1:
        return "inputs or outputs are not side by side"
    if x.dtype == torch.bfloat16 and x.shape[2] % 2:
        return "odd number of bf16 inputs"
    if weight.data.ndim == 3:
        return "the weight is not packed"
    return native.unsupported(weight.data)


def linear_heads(x: torch.Tensor, weight: PackedHeads, out: torch.Tensor) -> None:
    """See `saccade.kernels.linear.linear_heads`."""
    native.kernels().linear(
        native.DTYPES[x.dtype],
        native.DTYPES[out.dtype],
        x.shape[0],
        weight.in_features,
        weight.out_features,
        x.data_ptr(),
        x.stride(0),
        weight.data.data_ptr(),
        0,  # no bias
        out.data_ptr(),
        out.stride(0),
        x.shape[1],
        x.stride(1),
        out.stride(1),
    )
