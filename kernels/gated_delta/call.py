"""One call of `gated_delta`, as its implementations take it."""

from __future__ import annotations

from typing import NamedTuple

import torch

from .walk import Walk


class DeltaCall(NamedTuple):
    """The arguments of `saccade.kernels.gated_delta.gated_delta`, whose door has checked them."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    decay: torch.Tensor
    beta: torch.Tensor
    states: torch.Tensor
    walk: Walk

    def misplaced(self) -> str | None:
        """What lies in memory otherwise than kernels read it, or None."""
        if any(x.stride(1) != x.shape[2] for x in (self.q, self.k, self.v)):
            return "the heads of a row are not adjacent"
        if not all(x.is_contiguous() for x in (self.decay, self.beta, self.states)):
            return "decay, beta or states are not contiguous"
        return None

    def way(self) -> list[torch.Tensor]:
        """The walk, its numbers one behind the other: cu, rows, load, store."""
        walk = self.walk
        return [x.contiguous() for x in (walk.cu, walk.rows, walk.load, walk.store)]
