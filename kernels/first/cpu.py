"""The first key's weight, scaled after attention, by the compiled CPU kernel."""

from __future__ import annotations

import torch

from .. import native
from ..store import unwritten
from .call import FirstCall


def supports(call: FirstCall) -> str | None:
    """None when the kernel can serve this call, otherwise the reason."""
    served = (call.q, call.out, call.lse, call.k, call.v, call.gains)
    return call.misplaced() or native.unsupported(*served)


def scale_first(call: FirstCall) -> tuple[torch.Tensor, torch.Tensor]:
    """See `saccade.kernels.first.scale_first`."""
    q, out, lse, k, v, cu_rows, gains, scale, softcap, seen = call
    result, mass = unwritten(out.shape, q.dtype), torch.empty_like(lse)
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
