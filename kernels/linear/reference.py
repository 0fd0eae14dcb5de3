"""A linear layer in plain torch, from the packed weight."""

from __future__ import annotations

import torch

from .packed import PackedHeads, PackedWeight


def linear(x: torch.Tensor, weight: PackedWeight, out_dtype: torch.dtype) -> torch.Tensor:
    """See `saccade.kernels.linear.linear`."""
    out = x.float() @ weight.unpack().float().T
    if weight.bias is not None:
        out += weight.bias
    return out.to(out_dtype)


def linear_heads(x: torch.Tensor, weight: PackedHeads, out: torch.Tensor) -> None:
    """See `saccade.kernels.linear.linear_heads`."""
    for h in range(len(weight)):
        out[:, h] = linear(x[:, h], weight.head(h), out.dtype)
