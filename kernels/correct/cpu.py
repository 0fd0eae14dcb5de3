"""Corrections by the compiled CPU kernel: each row is read once and written once, rounded."""

from __future__ import annotations

import torch

from .. import native
from ..store import unwritten


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
    given = (out, lse, table, weights)
    if not all(x is None or x.is_contiguous() for x in (*given, into)):
        return "partial results are not contiguous"
    if dtype not in native.DTYPES:
        return f"output {dtype}"
    return native.unsupported(*given)


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
    rows, heads, dim = out.shape
    source = source.contiguous()
    answer = unwritten(out.shape, dtype) if into is None else into
    native.kernels().correct(
        native.DTYPES[dtype],
        rows,
        heads,
        dim,
        table.shape[0],
        out.data_ptr(),
        lse.data_ptr(),
        table.data_ptr(),
        0 if weights is None else weights.data_ptr(),
        source.data_ptr(),
        answer.data_ptr(),
    )
    return answer
