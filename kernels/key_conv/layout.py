"""How tensors of a convolution must lie in memory, for any kernel."""

from __future__ import annotations

import torch


def misplaced(
    k: torch.Tensor, history: torch.Tensor, before: torch.Tensor, weight: torch.Tensor
) -> str | None:
    """What lies otherwise than kernels read it, or None."""
    if k.stride(1) != k.shape[2]:
        return "the heads of a row are not adjacent"
    if not (history.is_contiguous() and before.is_contiguous() and weight.is_contiguous()):
        return "history, before or weight is not contiguous"
    return None
