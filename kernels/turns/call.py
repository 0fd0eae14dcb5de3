"""One call of `attend_turns`, as its implementations take it."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..attend import Keys
from ..store import PageLayout


class TurnsCall(NamedTuple):
    """The arguments of `saccade.kernels.turns.attend_turns`, whose door has checked them."""

    layout: PageLayout
    rows: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    pages: tuple[torch.Tensor, torch.Tensor]
    keys: Keys
    slots: torch.Tensor
    replaces: torch.Tensor
    scale: float
