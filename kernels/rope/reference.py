"""Rotary embedding in plain torch."""

from __future__ import annotations

import torch


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    half = cos.shape[-1]
    first, second = x[..., :half].float(), x[..., half : 2 * half].float()
    c, s = cos[:, None, :], sin[:, None, :]
    x[..., :half] = (first * c - second * s).to(x.dtype)
    x[..., half : 2 * half] = (second * c + first * s).to(x.dtype)


def apply_rope(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    """See `saccade.kernels.rope.apply_rope`."""
    _rotate(q, cos, sin)
    _rotate(k, cos, sin)
