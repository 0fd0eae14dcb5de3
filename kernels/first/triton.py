"""The first key's weight, scaled after attention, on a GPU."""

from __future__ import annotations

import torch

from .. import gpu
from .. import triton_sizes as sizes


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
    return gpu.triton_refusal(q, out, lse, k, v, gains)


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
