"""Log-sum-exp merge by the compiled CPU kernel."""

from __future__ import annotations

import torch

from .. import native
from ..store import unwritten


def supports(
    out_a: torch.Tensor, lse_a: torch.Tensor, out_b: torch.Tensor, lse_b: torch.Tensor
) -> str | None:
    """None when the kernel can serve this call, otherwise the reason."""
    if not all(t.is_contiguous() for t in (out_a, lse_a, out_b, lse_b)):
        return "not contiguous"
    return native.unsupported(out_a, lse_a, out_b, lse_b)


def merge(
    out_a: torch.Tensor, lse_a: torch.Tensor, out_b: torch.Tensor, lse_b: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `saccade.kernels.merge.merge`."""
    out, lse = unwritten(out_a.shape, out_a.dtype), torch.empty_like(lse_a)
    native.kernels().merge(
        native.DTYPES[out.dtype],
        lse.numel(),
        out.shape[-1],
        out_a.data_ptr(),
        lse_a.data_ptr(),
        out_b.data_ptr(),
        lse_b.data_ptr(),
        out.data_ptr(),
        lse.data_ptr(),
    )
    return out, lse
