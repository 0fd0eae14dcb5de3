"""Those who look on while a step runs, for `saccade look` and for calibration."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

from ...kernels.attend import Keys
from .base import Aux, LayerShape
from .experts import Chosen


@dataclass(frozen=True)
class Judged:
    """Decisions of a layer's heads, and what they would be if the weights of all keys were known.

    Counts over queries that have far keys at all. float64 [H] each.
    """

    decisions: torch.Tensor
    equal: torch.Tensor  # decided as the oracle would
    far: torch.Tensor  # read their far keys
    needed: torch.Tensor  # should have
    found: torch.Tensor  # did and should have

    @staticmethod
    def of(far: torch.Tensor, needed: torch.Tensor, asked: torch.Tensor) -> Judged:
        """Of decisions bool [T, H] and those of the oracle, over the rows asked, bool [T]."""
        far, needed = far[asked], needed[asked]
        counts = (torch.ones_like(far), far == needed, far, needed, far & needed)
        return Judged(*(each.sum(0, dtype=torch.float64) for each in counts))

    def __add__(self, other: Judged) -> Judged:
        return Judged(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


class Watch:
    """Somebody who looks on while a step runs (see Forward); overrides what is to be seen."""

    def choose(
        self,
        layer: int,
        shape: LayerShape,
        positions: torch.Tensor,
        chosen: Chosen,
        q: torch.Tensor,
        k: torch.Tensor,
    ) -> None:
        """The layer's heads of their own choice have chosen, with q, k [N, d] of the pairs; comes
        before the layer's `enter`.
        """

    def enter(
        self,
        layer: int,
        shape: LayerShape,
        positions: torch.Tensor,
        q: torch.Tensor,
        k: torch.Tensor,
        aux: Aux,
    ) -> None:
        """A layer is about to attend, with q [T, H, d] and k as the pages will hold it."""

    def read(self, keys: Keys) -> None:
        """Some of the layer's rows read these keys, at absolute positions; reads add up."""

    def judge(self, judged: Judged) -> None:
        """Rows of the layer decided whether to read their far keys; decisions add up."""

    def leave(self) -> None:
        """The layer has attended."""
