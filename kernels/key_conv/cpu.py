"""Convolution of keys by the compiled CPU kernel."""

from __future__ import annotations

import torch

from .. import native
from .layout import misplaced


def supports(
    k: torch.Tensor,
    history: torch.Tensor,
    before: torch.Tensor,
    weight: torch.Tensor,
    residual: bool = True,
) -> str | None:
    """None when the kernel can serve this call, otherwise the reason."""
    if reason := misplaced(k, history, before, weight):
        return reason
    return native.unsupported(k, history, weight)


def key_conv(
    k: torch.Tensor,
    history: torch.Tensor,
    before: torch.Tensor,
    weight: torch.Tensor,
    residual: bool = True,
) -> torch.Tensor:
    """See `saccade.kernels.key_conv.key_conv`."""
    out = torch.empty(k.shape, dtype=k.dtype)
    native.kernels().key_conv(
        native.DTYPES[k.dtype],
        k.shape[0],
        k.shape[1] * k.shape[2],
        weight.shape[0],
        residual,
        k.data_ptr(),
        k.stride(0),
        history.data_ptr(),
        before.data_ptr(),
        weight.data_ptr(),
        out.data_ptr(),
    )
    return out
