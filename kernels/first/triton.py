"""The first key's weight, scaled after attention, on a GPU."""

from __future__ import annotations

import torch

from .. import gpu
from .. import triton_sizes as sizes
from .call import FirstCall


def supports(call: FirstCall) -> str | None:
    """None when the kernel can serve this call, otherwise the reason."""
    served = (call.q, call.out, call.lse, call.k, call.v, call.gains)
    return call.misplaced() or gpu.triton_refusal(*served)


def scale_first(call: FirstCall) -> tuple[torch.Tensor, torch.Tensor]:
    """See `saccade.kernels.first.scale_first`."""
    q, out, lse, k, v, cu_rows, gains, scale, softcap, seen = call
    from .triton_kernel import scale_heads

    rows, heads, dim = q.shape
    v_dim = out.shape[2]
    result = torch.empty(out.shape, dtype=q.dtype, device=q.device)
    mass = torch.empty_like(lse)
    if not out.numel():
        return result, mass
    wide = max(sizes.power_of_two(dim), sizes.power_of_two(v_dim))
    tile = sizes.rows_of(wide)
    scale_heads[(-(-rows * heads // tile),)](
        q,
        out,
        lse,
        k,
        v,
        cu_rows,
        gains,
        gains if seen is None else seen.view(torch.uint8),
        result,
        mass,
        *q.stride()[:2],
        rows,
        k.shape[0],
        heads,
        k.shape[1],
        scale,
        softcap or 1.0,
        D=dim,
        BD=sizes.power_of_two(dim),
        DV=v_dim,
        BDV=sizes.power_of_two(v_dim),
        SP=sizes.power_of_two(k.shape[0]),
        BR=tile,
        CAP=softcap is not None,
        SEEN=seen is not None,
        num_warps=4,
    )
    return result, mass
