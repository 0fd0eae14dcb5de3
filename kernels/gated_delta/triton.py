"""The gated delta rule on a GPU."""

from __future__ import annotations

import torch

from .. import gpu
from .. import triton_sizes as sizes
from .call import DeltaCall
from .reference import EPS

# Channels of a value for one program, of one warp: 128 channels of keys are then 32 numbers for
# each thread, a row's two sums stay in the warp, and 32 heads of 128 channels make 512 programs.
# Tokens come one after the other, so the time of a token is what counts.
CHANNELS = 8


def supports(call: DeltaCall) -> str | None:
    """None when the kernel can serve this call, otherwise the reason."""
    if call.q.shape[2] > 512:
        return f"keys of {call.q.shape[2]} channels"
    return call.misplaced() or gpu.triton_refusal(*call[:-1])


def gated_delta(call: DeltaCall) -> torch.Tensor:
    """See `saccade.kernels.gated_delta.gated_delta`."""
    from .triton_kernel import walk_states

    q, k, v, decay, beta, states, walk = call
    _, heads, v_dim = v.shape
    dim = q.shape[2]
    out = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    walk_states[(-(-v_dim // CHANNELS), walk.load.shape[0], heads)](
        q,
        k,
        v,
        decay,
        beta,
        states,
        out,
        *call.way(),
        q.stride(0),
        k.stride(0),
        v.stride(0),
        states.shape[0],
        heads,
        heads // q.shape[1],
        EPS,
        dim**-0.5,
        D=dim,
        BD=sizes.power_of_two(dim),
        DV=v_dim,
        BV=CHANNELS,
        num_warps=1,
    )
    return out
