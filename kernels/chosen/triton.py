"""Projections of chosen rows on a GPU."""

from __future__ import annotations

import torch

from .. import gpu
from .. import triton_sizes as sizes
from ..linear import PackedHeads

ROWS = 16  # of a program, the least of a product: decode has few


def supports(x: torch.Tensor, weight: PackedHeads, chosen: torch.Tensor) -> str | None:
    """None when the kernel can serve this call of `project_chosen`, otherwise the reason."""
    if not weight.data.is_contiguous():
        return "weights are not contiguous"
    return gpu.triton_refusal(x, weight.data)


def adds(
    total: torch.Tensor, y: torch.Tensor, weight: PackedHeads, chosen: torch.Tensor
) -> str | None:
    """None when the kernel can serve this call of `add_chosen`, otherwise the reason."""
    if not (weight.data.is_contiguous() and total.is_contiguous()):
        return "weights or sums are not contiguous"
    return gpu.triton_refusal(total, y, weight.data)


def project_chosen(x: torch.Tensor, weight: PackedHeads, chosen: torch.Tensor) -> torch.Tensor:
    """See `saccade.kernels.chosen.project_chosen`."""
    from .triton_kernel import project_rows

    heads, rows, outputs = *chosen.shape, weight.out_features
    out = x.new_empty((heads, rows, outputs))
    size = sizes.few_rows(x.dtype)
    project_rows[(-(-outputs // size.rows), -(-rows // ROWS), heads)](
        x, weight.data, chosen.contiguous(), out, rows, x.stride(0), weight.in_features, outputs,
        BT=ROWS, BN=size.rows, BK=size.keys, UPCAST=gpu.upcast(x),
        num_warps=size.warps, num_stages=size.stages,
    )  # fmt: skip
    return out


def add_chosen(
    total: torch.Tensor, y: torch.Tensor, weight: PackedHeads, chosen: torch.Tensor
) -> None:
    """See `saccade.kernels.chosen.add_chosen`."""
    from .triton_kernel import add_rows

    heads, rows, outputs = *chosen.shape, weight.out_features
    size = sizes.few_rows(y.dtype)
    add_rows[(-(-outputs // size.rows), -(-rows // ROWS))](
        total, y.contiguous(), weight.data, chosen.contiguous(), rows, heads,
        weight.in_features, outputs,
        BT=ROWS, BN=size.rows, BK=size.keys, UPCAST=gpu.upcast(y),
        num_warps=size.warps, num_stages=size.stages,
    )  # fmt: skip
