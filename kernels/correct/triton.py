"""Corrections on a GPU: each row is read once and written once, rounded."""

from __future__ import annotations

import torch

from .. import gpu
from .. import triton_sizes as sizes


def supports(
    out: torch.Tensor,
    lse: torch.Tensor,
    table: torch.Tensor,
    weights: torch.Tensor | None,
    source: torch.Tensor,
    dtype: torch.dtype,
    into: torch.Tensor | None = None,
) -> str | None:
    """None when the kernel can serve this call, otherwise the reason."""
    given = [x for x in (out, lse, table, weights, into) if x is not None]
    if not all(x.is_contiguous() for x in given):
        return "partial results are not contiguous"
    if dtype not in gpu.FLOATS:
        return f"output {dtype}"
    return gpu.triton_refusal(*given)


def correct(
    out: torch.Tensor,
    lse: torch.Tensor,
    table: torch.Tensor,
    weights: torch.Tensor | None,
    source: torch.Tensor,
    dtype: torch.dtype,
    into: torch.Tensor | None = None,
) -> torch.Tensor:
    """See `saccade.kernels.correct.correct`."""
    from ..triton_rowwise import correct_heads

    rows, heads, v_dim = out.shape
    answer = out.new_empty(out.shape, dtype=dtype) if into is None else into
    if answer.numel():
        width = sizes.power_of_two(v_dim)
        tile = sizes.rows_of(width)
        correct_heads[(-(-rows * heads // tile),)](
            out,
            lse,
            table,
            weights,
            source.contiguous(),
            answer,
            rows * heads,
            table.shape[0],
            heads,
            DV=v_dim,
            BDV=width,
            BR=tile,
            MERGE=weights is not None,
            num_warps=4,
        )
    return answer
