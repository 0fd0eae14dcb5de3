"""The first key's weight, scaled after attention, by the compiled CPU kernel."""

from __future__ import annotations

import torch

from .. import native


def supports(
    q: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_rows: torch.Tensor,
    gains: torch.Tensor,
    scale: float,
    softcap: float | None = None,
    seen: torch.Tensor | None = None,
) -> str | None:
    """None when the kernel can serve this call, otherwise the reason."""
    if not all(each.is_contiguous() for each in (out, lse, k, v, cu_rows, gains)):
        return "results, first keys or gains are not contiguous"
    if seen is not None and not seen.is_contiguous():
        return "seen is not contiguous"
    return native.unsupported(q, out, lse, k, v, gains)


def scale_first(
    q: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_rows: torch.Tensor,
    gains: torch.Tensor,
    scale: float,
    softcap: float | None = None,
    seen: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `saccade.kernels.first.scale_first`."""
    result, mass = torch.empty(out.shape, dtype=q.dtype), torch.empty_like(lse)
    native.kernels().scale_first(
        native.DTYPES[q.dtype],
        k.shape[0],
        q.shape[0],
        q.shape[1],
        k.shape[1],
        q.shape[2],
        out.shape[2],
        q.data_ptr(),
        q.stride(0),
        q.stride(1),
        k.data_ptr(),
        v.data_ptr(),
        cu_rows.data_ptr(),
        out.data_ptr(),
        lse.data_ptr(),
        gains.data_ptr(),
        0 if seen is None else seen.data_ptr(),
        scale,
        softcap or 0.0,
        result.data_ptr(),
        mass.data_ptr(),
    )
    return result, mass
