"""Linear layers by the matrix products of torch's GPU libraries, over weights left as rows.

The library chooses its kernel by the number of rows: unlike the compiled CPU kernel's, a row's bits
may depend on how many rows there are.
"""

from __future__ import annotations

import torch

from .. import gpu
from .packed import PackedHeads, PackedWeight


def supports(x: torch.Tensor, weight: PackedWeight, out_dtype: torch.dtype) -> str | None:
    """None when the library can serve this call, otherwise the reason."""
    if weight.data.ndim != 2:
        return "the weight is packed for the CPU"
    if out_dtype not in (x.dtype, torch.float32):
        return f"output {out_dtype} for input {x.dtype}"
    return None if x.is_cuda or gpu.interpreted() else f"tensor on {x.device}"


def linear(x: torch.Tensor, weight: PackedWeight, out_dtype: torch.dtype) -> torch.Tensor:
    """See `saccade.kernels.linear.linear`. Sums and bias in fp32, rounded once."""
    if out_dtype != x.dtype or weight.bias is not None:
        if x.is_cuda and x.dtype != torch.float32:
            out = torch.mm(x, weight.data.T, out_dtype=torch.float32)
        else:
            out = x.float() @ weight.data.float().T
        if weight.bias is not None:
            out += weight.bias
        return out.to(out_dtype)
    return x @ weight.data.T


def supports_heads(x: torch.Tensor, weight: PackedHeads, out: torch.Tensor) -> str | None:
    """None when the library can serve this call, otherwise the reason."""
    if weight.data.ndim != 3:
        return "the weights are packed for the CPU"
    return None if x.is_cuda or gpu.interpreted() else f"tensor on {x.device}"


def linear_heads(x: torch.Tensor, weight: PackedHeads, out: torch.Tensor) -> None:
    """See `saccade.kernels.linear.linear_heads`."""
    out.copy_(torch.bmm(x.transpose(0, 1), weight.data.transpose(1, 2)).transpose(0, 1))
