"""Gated SiLU in plain torch."""

from __future__ import annotations

import torch


def silu_mul(x: torch.Tensor) -> torch.Tensor:
    """See `saccade.kernels.activation.silu_mul`."""
    gate, up = x.float().chunk(2, dim=-1)
    return (torch.nn.functional.silu(gate) * up).to(x.dtype)
