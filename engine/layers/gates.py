"""Gates of attention branches, from a layer's input."""

from __future__ import annotations

import torch

from ...kernels.linear import PackedWeight, linear


def sigmoid_gates(x: torch.Tensor, weight: PackedWeight, per_head: int) -> torch.Tensor:
    """float32 [T, H, per_head] of x [T, hidden]; weight has head-major rows.

    In fp64, whose last bit, which a vector routine may round by the element's place, does not
    survive the rounding to fp32.
    """
    logits = linear(x, weight, torch.float32).view(x.shape[0], -1, per_head)
    return logits.double().sigmoid().float()
