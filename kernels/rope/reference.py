"""Rotary embedding in plain torch."""

from __future__ import annotations

import torch


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    half = cos.shape[-1]
    first, second = x[..., :half].float(), x[..., half : 2 * half].float()
    c, s = cos[:, None, :], sin[:, None, :]
    turned = first * c - second * s, second * c + first * s  # both before writing: a view in fp32
    x[..., :half], x[..., half : 2 * half] = (half_turned.to(x.dtype) for half_turned in turned)


def apply_rope(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    """See `saccade.kernels.rope.apply_rope`."""
    _rotate(q, cos, sin)
    _rotate(k, cos, sin)
