"""Gated sums by the compiled CPU kernel."""

from __future__ import annotations

import torch

from .. import native
from ..store import unwritten


def supports(parts: tuple[torch.Tensor, ...], gates: torch.Tensor) -> str | None:
    """None when the kernel can serve this call, otherwise the reason."""
    if not all(part.is_contiguous() for part in parts):
        return "parts are not contiguous"
    if gates.stride(0) != gates.shape[1] * gates.stride(1):
        return "gates of tokens and heads are not evenly spaced"
    return native.unsupported(*parts, gates)


def gated_sum(parts: tuple[torch.Tensor, ...], gates: torch.Tensor) -> torch.Tensor:
    """See `saccade.kernels.gate.gated_sum`."""
    out = unwritten(parts[0].shape, parts[0].dtype)
    native.kernels().gated_sum(
        native.DTYPES[out.dtype],
        out.shape[0] * out.shape[1],
        out.shape[2],
        len(parts),
        *(parts[i].data_ptr() if i < len(parts) else 0 for i in range(4)),
        gates.data_ptr(),
        gates.stride(1),
        out.data_ptr(),
    )
    return out
