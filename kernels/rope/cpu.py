"""Rotary embedding by the compiled CPU kernel."""

from __future__ import annotations

import torch

from .. import native


def supports(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> str | None:
    """None when the kernel can serve this call, otherwise the reason."""
    if q.dtype != k.dtype:
        return "mixed dtypes"
    if not (cos.is_contiguous() and sin.is_contiguous()):
        return "cos or sin is not contiguous"
    return native.unsupported(q, k, cos, sin)


def apply_rope(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    """See `saccade.kernels.rope.apply_rope`."""
    rope = native.kernels().rope
    for x in (q, k):
        rope(
            native.DTYPES[x.dtype],
            x.shape[0],
            x.shape[1],
            cos.shape[1],
            x.data_ptr(),
            x.stride(0),
            x.stride(1),
            cos.data_ptr(),
            sin.data_ptr(),
        )
