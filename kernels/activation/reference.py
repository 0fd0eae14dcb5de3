"""Gated activations in plain torch."""

from __future__ import annotations

import torch


def silu_mul(x: torch.Tensor) -> torch.Tensor:
    """See `saccade.kernels.activation.silu_mul`."""
    gate, up = x.float().chunk(2, dim=-1)
    return (torch.nn.functional.silu(gate) * up).to(x.dtype)


def swiglu(x: torch.Tensor, alpha: float, limit: float) -> torch.Tensor:
    """See `saccade.kernels.activation.swiglu`. The sigmoid as in `sigmoid_mul`."""
    gate, up = x.float().chunk(2, dim=-1)
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    share = (gate * alpha).double().sigmoid().float()
    return (gate * share * (up + 1.0)).to(x.dtype)


def sigmoid_mul(x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """See `saccade.kernels.activation.sigmoid_mul`.

    The sigmoid is taken in fp64: its last bit, which a vector routine may round by the element's
    place, does not survive the rounding to fp32.
    """
    share = gate.double().sigmoid().float()[..., None]
    wide = x.float().reshape(*gate.shape, x.shape[1] // gate.shape[1])
    return (wide * share).flatten(1).to(x.dtype)
