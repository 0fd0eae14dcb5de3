"""The gated delta rule on a GPU."""

from __future__ import annotations

import torch

from .. import gpu
from .. import triton_sizes as sizes
from .reference import EPS
from .walk import Walk

# Channels of a value for one program, of one warp: 128 channels of keys are then 32 numbers for
# each thread, a row's two sums stay in the warp, and 32 heads of 128 channels make 512 programs.
# Tokens come one after the other, so the time of a token is what counts.
CHANNELS = 8


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
    if any(x.stride(1) != x.shape[2] for x in (q, k, v)):
        return "the heads of a row are not adjacent"
    if not (decay.is_contiguous() and beta.is_contiguous() and states.is_contiguous()):
        return "decay, beta or states are not contiguous"
    if q.shape[2] > 512:
        return f"keys of {q.shape[2]} channels"
    return gpu.triton_refusal(q, k, v, decay, beta, states)


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
    from .triton_kernel import walk_states

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
        *(x.contiguous() for x in (walk.cu, walk.rows, walk.load, walk.store)),
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
