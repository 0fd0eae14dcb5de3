"""RMS norm with its weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...kernels.norm import rms_norm


@dataclass(frozen=True)
class Norm:
    """x / rms(x) * (offset + weight); offset is 1 where a family stores its weights around zero."""

    weight: torch.Tensor  # [n]
    eps: float
    offset: float = 0.0

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return self.weight.nbytes

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """x [T, n], or the sum that `residual` becomes by adding x to it in place."""
        return rms_norm(x, self.weight, self.eps, residual, self.offset)

    def each_head(self, x: torch.Tensor) -> torch.Tensor:
        """x [T, H, n], every head on its own."""
        rows = x.reshape(-1, x.shape[-1])
        return rms_norm(rows, self.weight, self.eps, None, self.offset).view(x.shape)
