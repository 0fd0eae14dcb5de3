"""Layers of experts in plain torch, one expert at a time."""

from __future__ import annotations

import torch

from .weights import ExpertWeights


def experts(
    x: torch.Tensor, chosen: torch.Tensor, shares: torch.Tensor, weights: ExpertWeights
) -> torch.Tensor:
    """See `saccade.kernels.experts.experts`."""
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for number in range(len(weights)):
        rows, place = torch.nonzero(chosen == number, as_tuple=True)
        gate_up, down = weights.gate_up.head(number), weights.down.head(number)
        both = (x[rows].float() @ gate_up.unpack().float().T).to(x.dtype)
        inner = _activated(both, weights.swiglu).float()
        share = shares[rows, place, None].float()
        out.index_add_(0, rows, inner @ down.unpack().float().T * share)
    return out


def _activated(x: torch.Tensor, swiglu: tuple[float, float] | None) -> torch.Tensor:
    """As in `kernels.activation`."""
    gate, value = x.float().chunk(2, dim=-1)
    if swiglu is None:
        return (torch.nn.functional.silu(gate) * value).to(x.dtype)
    alpha, limit = swiglu
    gate, value = gate.clamp(max=limit), value.clamp(-limit, limit)
    share = (gate * alpha).double().sigmoid().float()
    return (gate * share * (value + 1.0)).to(x.dtype)
