"""A linear layer by the compiled CPU kernel."""

from __future__ import annotations

import torch

from .. import native
from .packed import PackedWeight


def supports(x: torch.Tensor, weight: PackedWeight, out_dtype: torch.dtype) -> str | None:
    """None when the kernel can serve this call, otherwise the reason."""
    if out_dtype not in (x.dtype, torch.float32):
        return f"output {out_dtype} for input {x.dtype}"
    if x.dtype == torch.bfloat16 and x.shape[1] % 2:
        return "odd number of bf16 inputs"
    return native.unsupported(x, weight.data)


def linear(x: torch.Tensor, weight: PackedWeight, out_dtype: torch.dtype) -> torch.Tensor:
    """See `saccade.kernels.linear.linear`."""
    out = torch.empty((x.shape[0], weight.out_features), dtype=out_dtype)
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
    )
    return out
