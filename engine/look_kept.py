"""Maps of heads that choose their tokens, made while a step runs: what they kept and read."""

from __future__ import annotations

import torch

from .attention.base import LayerShape
from .attention.experts import Chosen
from .look_maps import Choice, HeadMap, cell_rows


class KeptMaps:
    """Sums over the rows of a single sequence, in order, for the chosen heads of one layer.

    The heads of a layer that choose are counted behind its others.
    """

    def __init__(self, choice: Choice, shape: LayerShape) -> None:
        self._choice, self._scale, self._first = choice, shape.scale, shape.num_heads
        count = shape.experts.heads if shape.experts else 0
        last = shape.num_heads + count
        self._lists = {
            head: _List(choice, shape.head_dim)
            for head in choice.heads
            if shape.num_heads <= head < last
        }

    def add(
        self, positions: torch.Tensor, chosen: Chosen, q: torch.Tensor, k: torch.Tensor
    ) -> None:
        """The rows of one step, of these positions: q, k [N, d] of the chosen pairs."""
        for head, own in self._lists.items():
            for i in torch.nonzero(chosen.heads == head - self._first).flatten().tolist():
                own.keep(int(chosen.slots[i]), int(positions[chosen.rows[i]]), k[i].float())
                own.read(int(chosen.lengths[i]), q[i].float() * self._scale)

    def maps(self, layer: int) -> list[HeadMap]:
        """The maps of the chosen heads."""
        return [own.map(self._choice, layer, head) for head, own in self._lists.items()]


class _List:
    """What one head keeps, and sums over the rows that read it."""

    def __init__(self, choice: Choice, dim: int) -> None:
        self._cell, cells = choice.cell, choice.cells
        self._positions = torch.zeros(choice.tokens, dtype=torch.int64)  # by slot
        self._keys = torch.zeros(choice.tokens, dim)
        self._read, self._mass = torch.zeros(cells, cells), torch.zeros(cells, cells)
        self._row = 0  # the position that was kept last
        self._kept = 0

    def keep(self, slot: int, position: int, key: torch.Tensor) -> None:
        """A token comes into the list, perhaps in another's place."""
        self._positions[slot], self._keys[slot] = position, key
        self._row, self._kept = position, self._kept + 1

    def read(self, length: int, q: torch.Tensor) -> None:
        """The token that came last attends to so many of the list, with q, scaled."""
        keys, row = self._positions[:length] // self._cell, self._row // self._cell
        self._read[row].index_add_(0, keys, torch.ones(length))
        self._mass[row].index_add_(0, keys, (self._keys[:length] @ q).softmax(0))

    def map(self, choice: Choice, layer: int, head: int) -> HeadMap:
        """What was read of all earlier keys; weights are the head's own."""
        visible = _visible(choice)
        return HeadMap(
            layer,
            head,
            visible,
            self._read / visible.clamp(min=1),
            self._mass / cell_rows(choice)[:, None],
            float(self._read.sum(dtype=torch.float64) / visible.sum(dtype=torch.float64)),
            None,
            kept=self._kept,
        )


def _visible(choice: Choice) -> torch.Tensor:
    """Pairs of a query and a key at or before it, per cell."""
    rows = cell_rows(choice)
    return torch.tril(rows[:, None] * rows, -1) + torch.diag(rows * (rows + 1) / 2)
