"""The gated delta rule by the compiled CPU kernel."""

from __future__ import annotations

import torch

from .. import native
from .walk import Walk

_LANES = 16  # of the widest vectors: channels of a value come in whole ones


def supports(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    decay: torch.Tensor,
    beta: torch.Tensor,
    states: torch.Tensor,
    walk: Walk,
) -> str | None:
    """None when the kernel can serve this call, otherwise the reason."""
    if v.shape[2] % _LANES:
        return f"values of {v.shape[2]} channels, not a multiple of {_LANES}"
    if any(x.stride(1) != x.shape[2] for x in (q, k, v)):
        return "the heads of a row are not adjacent"
    if not (decay.is_contiguous() and beta.is_contiguous() and states.is_contiguous()):
        return "decay, beta or states are not contiguous"
    return native.unsupported(q, k, v, states)


def gated_delta(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    decay: torch.Tensor,
    beta: torch.Tensor,
    states: torch.Tensor,
    walk: Walk,
) -> torch.Tensor:
    """See `saccade.kernels.gated_delta.gated_delta`."""
    out = torch.empty(v.shape, dtype=v.dtype)
    cu, rows, load, store = (x.contiguous() for x in (walk.cu, walk.rows, walk.load, walk.store))
    native.kernels().gated_delta(
        native.DTYPES[v.dtype],
        load.shape[0],
        v.shape[1],
        q.shape[1],
        q.shape[2],
        v.shape[2],
        cu.data_ptr(),
        rows.data_ptr(),
        load.data_ptr(),
        store.data_ptr(),
        q.data_ptr(),
        q.stride(0),
        k.data_ptr(),
        k.stride(0),
        v.data_ptr(),
        v.stride(0),
        decay.data_ptr(),
        beta.data_ptr(),
        states.data_ptr(),
        out.data_ptr(),
    )
    return out
