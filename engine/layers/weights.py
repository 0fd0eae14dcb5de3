"""Where layers take their weights from: a verified checkpoint, one tensor at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...kernels.linear import PackedHeads, PackedWeight, pack, pack_heads
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

    def exact(self, name: str) -> torch.Tensor:
        """The tensor in float32, whatever the type of the others."""
        return self.checkpoint.tensor(name, torch.float32)

    def joined(self, *names: str) -> torch.Tensor:
        """The tensors one behind the other along their first dimension."""
        return self.checkpoint.rows(names, self.dtype).clone()

    def stacked(self, name: str) -> PackedHeads:
        """The linear layers of a tensor [n, out, in]."""
        return pack_heads(self.checkpoint.rows([name], self.dtype))

    def projections(self, layers: Sequence[Sequence[str]]) -> PackedHeads:
        """Linear layers of one shape, each of them the linear layers of some names side by side."""
        parts = (self._rows([name + ".weight" for name in names], None) for names in layers)
        return pack_heads(parts, len(layers))

    def projection(
        self, *names: str, bias: bool = False, order: torch.Tensor | None = None
    ) -> PackedWeight:
        """The linear layers `names` side by side as one packed weight, outputs in this order.

        order: int64, which of all these outputs each one is to be.
        """
        rows = self._rows([name + ".weight" for name in names], order)
        if not bias:
            return pack(rows)
        return pack(rows, self._rows([name + ".bias" for name in names], order))

    def _rows(self, names: Sequence[str], order: torch.Tensor | None) -> torch.Tensor:
        rows = self.checkpoint.rows(names, self.dtype)
        return rows if order is None else rows[order]


def linear_tensors(name: str, rows: int, columns: int, bias: bool) -> dict[str, tuple[int, ...]]:
    """Name -> shape of a linear layer's tensors."""
    shapes: dict[str, tuple[int, ...]] = {name + ".weight": (rows, columns)}
    return shapes | {name + ".bias": (rows,)} if bias else shapes
