"""Where layers take their weights from: a verified checkpoint, one tensor at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...kernels.linear import PackedWeight, pack
from ..checkpoint.loader import Checkpoint


@dataclass(frozen=True)
class Weights:
    """The tensors of a verified checkpoint, converted to `dtype`.

    Every call copies what it gives out, and nothing is kept: at no time are there two copies of
    more than one layer's projection in memory.
    """

    checkpoint: Checkpoint
    dtype: torch.dtype

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor as it is."""
        return self.checkpoint.tensor(name, self.dtype)

    def projection(self, *names: str, bias: bool = False) -> PackedWeight:
        """The linear layers `names` side by side as one packed weight, outputs in this order."""
        rows = self.checkpoint.rows([name + ".weight" for name in names], self.dtype)
        if not bias:
            return pack(rows)
        return pack(rows, self.checkpoint.rows([name + ".bias" for name in names], self.dtype))


def linear_tensors(name: str, rows: int, columns: int, bias: bool) -> dict[str, tuple[int, ...]]:
    """Name -> shape of a linear layer's tensors."""
    shapes: dict[str, tuple[int, ...]] = {name + ".weight": (rows, columns)}
    return shapes | {name + ".bias": (rows,)} if bias else shapes
