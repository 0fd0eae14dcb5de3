"""Gated sums in plain torch."""

from __future__ import annotations

import torch


def gated_sum(parts: tuple[torch.Tensor, ...], gates: torch.Tensor) -> torch.Tensor:
    """See `saccade.kernels.gate.gated_sum`."""
    total = parts[0].float() * gates[..., :1]
    for i, part in enumerate(parts[1:], start=1):
        total = total + part.float() * gates[..., i : i + 1]
    return total.to(parts[0].dtype)
