"""Log-sum-exp merge on a GPU."""

from __future__ import annotations

import torch

from .. import gpu
from .. import triton_sizes as sizes


def supports(
    out_a: torch.Tensor, lse_a: torch.Tensor, out_b: torch.Tensor, lse_b: torch.Tensor
) -> str | None:
    """None when the kernel can serve this call, otherwise the reason."""
    if not all(each.is_contiguous() for each in (out_a, lse_a, out_b, lse_b)):
        return "not contiguous"
    return gpu.triton_refusal(out_a, lse_a, out_b, lse_b)


def merge(
    out_a: torch.Tensor, lse_a: torch.Tensor, out_b: torch.Tensor, lse_b: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `saccade.kernels.merge.merge`."""
    from ..triton_rowwise import merge_rows

    out, lse = torch.empty_like(out_a), torch.empty_like(lse_a)
    rows, v_dim = lse.numel(), out.shape[-1]
    if not out.numel():
        return out, torch.logaddexp(lse_a, lse_b)
    tile = sizes.rows_of(sizes.power_of_two(v_dim))
    merge_rows[(-(-rows // tile),)](
        out_a,
        lse_a,
        out_b,
        lse_b,
        out,
        lse,
        rows,
        DV=v_dim,
        BDV=sizes.power_of_two(v_dim),
        BR=tile,
        num_warps=4,
    )
    return out, lse
