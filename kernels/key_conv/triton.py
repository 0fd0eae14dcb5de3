"""Convolution of keys on a GPU."""

from __future__ import annotations

import torch

from .. import gpu
from .. import triton_sizes as sizes
from .layout import misplaced

RUN = 512  # channels of a program, at most


def supports(
    k: torch.Tensor,
    history: torch.Tensor,
    before: torch.Tensor,
    weight: torch.Tensor,
    residual: bool = True,
) -> str | None:
    """None when the kernel can serve this call, otherwise the reason."""
    if reason := misplaced(k, history, before, weight):
        return reason
    return gpu.triton_refusal(k, history, weight)


def key_conv(
    k: torch.Tensor,
    history: torch.Tensor,
    before: torch.Tensor,
    weight: torch.Tensor,
    residual: bool = True,
) -> torch.Tensor:
    """See `saccade.kernels.key_conv.key_conv`."""
    from .triton_kernel import convolve_rows

    rows, n = k.shape[0], k.shape[1] * k.shape[2]
    out = torch.empty(k.shape, dtype=k.dtype, device=k.device)
    if out.numel():
        run = min(sizes.power_of_two(n), RUN)
        tile = min(sizes.rows_of(run), sizes.power_of_two(rows))
        convolve_rows[(-(-rows // tile), -(-n // run))](
            k,
            history,
            before,
            weight,
            out,
            k.stride(0),
            rows,
            history.shape[0],
            n,
            TAPS=weight.shape[0],
            BR=tile,
            BN=run,
            RESIDUAL=residual,
            num_warps=4,
        )
    return out
