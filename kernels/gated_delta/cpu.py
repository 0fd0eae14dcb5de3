"""The gated delta rule by the compiled CPU kernel."""

from __future__ import annotations

import torch

from .. import native
from .call import DeltaCall

_LANES = 16  # of the widest vectors: channels of a value come in whole ones


def supports(call: DeltaCall) -> str | None:
    """None when the kernel can serve this call, otherwise the reason."""
    if call.v.shape[2] % _LANES:
        return f"values of {call.v.shape[2]} channels, not a multiple of {_LANES}"
    return call.misplaced() or native.unsupported(call.q, call.k, call.v, call.states)


def gated_delta(call: DeltaCall) -> torch.Tensor:
    """See `saccade.kernels.gated_delta.gated_delta`."""
    q, k, v, decay, beta, states, _ = call
    out = torch.empty(v.shape, dtype=v.dtype)
    cu, rows, load, store = call.way()
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
