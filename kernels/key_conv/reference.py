"""Convolution of keys in plain torch."""

from __future__ import annotations

import torch


def key_conv(
    k: torch.Tensor,
    history: torch.Tensor,
    before: torch.Tensor,
    weight: torch.Tensor,
    residual: bool = True,
) -> torch.Tensor:
    """See `saccade.kernels.key_conv.key_conv`.

    The sigmoid is taken in fp64: its last bit, which a vector routine may round by the element's
    place, does not survive the rounding to fp32.
    """
    table = torch.cat([k.new_zeros((1, *k.shape[1:])), k, history]).float()
    at = torch.where(before >= 0, before + 1, torch.where(before == -1, 0, k.shape[0] - 1 - before))
    total = weight[0].float() * k.float()
    for tap in range(1, weight.shape[0]):
        total = total + weight[tap].float() * table[at[:, tap - 1]]
    own = k.float() if residual else 0.0
    return (own + total * total.double().sigmoid().float()).to(k.dtype)
