"""One call of `scale_first`, as its implementations take it."""

from __future__ import annotations

from typing import NamedTuple

import torch


class FirstCall(NamedTuple):
    """The arguments of `saccade.kernels.first.scale_first`, whose door has checked them."""

    q: torch.Tensor
    out: torch.Tensor
    lse: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    cu_rows: torch.Tensor
    gains: torch.Tensor
    scale: float
    softcap: float | None = None
    seen: torch.Tensor | None = None

    def misplaced(self) -> str | None:
        """What lies in memory otherwise than kernels read it, or None."""
        if not all(each.is_contiguous() for each in self[1:7]):
            return "results, first keys or gains are not contiguous"
        if self.seen is not None and not self.seen.is_contiguous():
            return "seen is not contiguous"
        return None
