"""Maps of attention, made while a step runs: what was read and what dense attention would weigh."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch

from ..kernels.attend import Keys
from ..kernels.attend.reference import visible
from .attention.base import Aux, LayerShape
from .attention.watch import Judged

_ROWS = 256  # rows whose probabilities are held at a time


@dataclass(frozen=True)
class Choice:
    """What is to be seen: layers and heads, of how many tokens, in cells of how many."""

    layers: tuple[int, ...]
    heads: tuple[int, ...]
    tokens: int
    cell: int

    @property
    def cells(self) -> int:
        """Cells of a row of a map."""
        return -(-self.tokens // self.cell)


@dataclass(frozen=True)
class Decided:
    """How one head's decisions compare with those of an oracle that knows every key's weight.

    queries: those that had far keys to decide about. agreement: share of them decided as the oracle
    would. precision: of those that read their far keys, the share that needed them; recall: of
    those that needed them, the share that read them; 1 where there was none.
    """

    queries: int
    agreement: float
    precision: float
    recall: float

    @staticmethod
    def of(judged: Judged, head: int) -> Decided:
        """One head of a layer."""
        count, equal, far, needed, found = (
            float(getattr(judged, each.name)[head]) for each in fields(judged)
        )
        shares = (
            part / all_ if all_ else 1.0
            for part, all_ in ((equal, count), (found, far), (found, needed))
        )
        return Decided(int(count), *shares)


@dataclass(frozen=True)
class HeadMap:
    """One head of one layer; cells [i, j] are of queries i and keys j, float32 [cells, cells].

    visible: (query, key) pairs that dense attention reads, in the model's own window. read: the
    share of them that was read. mass: dense attention's probability on the cell's keys, mean over
    its queries: the cells of a row add up to 1. keys_share: of all visible pairs, those that were
    read. mass_share: of the probability, what fell on keys that were read. decided: of a method
    whose heads decide whether to read their far keys. kept: tokens that a head of its own choice
    has kept, at the end or on the way; None: it keeps all. Such a head has queries and keys of
    these tokens alone: `mass` is its own weights, other queries have none, and mass_share is None.
    """

    layer: int
    head: int
    visible: torch.Tensor
    read: torch.Tensor
    mass: torch.Tensor
    keys_share: float
    mass_share: float | None
    decided: Decided | None = None
    kept: int | None = None


def cell_rows(choice: Choice) -> torch.Tensor:
    """float32 [cells]: tokens of every cell; the last one may have fewer."""
    rows = torch.full((choice.cells,), float(choice.cell))
    rows[-1] = choice.tokens - (choice.cells - 1) * choice.cell
    return rows


class LayerMaps:
    """Sums over rows, for the chosen heads of one layer."""

    def __init__(self, choice: Choice, shape: LayerShape) -> None:
        self.reads: list[Keys] = []
        self.judged: Judged | None = None
        self._choice, self._shape = choice, shape
        self._heads = [head for head in choice.heads if head < shape.num_heads]
        grid = (len(self._heads), choice.cells, choice.cells)
        self._read, self._mass = torch.zeros(grid), torch.zeros(grid)
        self._seen = torch.zeros(grid[1:])
        self._weight = torch.zeros((2, len(self._heads)), dtype=torch.float64)  # read, and all
        self._keys = torch.empty(0)

    def begin(self, positions: torch.Tensor, q: torch.Tensor, k: torch.Tensor, aux: Aux) -> None:
        self.reads = []
        self._positions, self._sinks = positions, aux.sink_logits
        # Latents are scored by absorbed queries.
        self._q = (q if aux.up is None else aux.up.absorb(q))[:, self._heads].float()
        k = k.float()
        self._keys = torch.cat([self._keys, k]) if len(self._keys) else k.clone()

    def add_rows(self) -> None:
        if not self._heads:
            return
        for begin in range(0, len(self._positions), _ROWS):
            rows = slice(begin, begin + _ROWS)
            length = int(self._positions[rows][-1]) + 1
            read = self._mask(self._positions[rows], length)
            mass = self._probabilities(rows, length)
            seen = self._visible(self._positions[rows], length)
            query = self._positions[rows] // self._choice.cell
            self._read.index_add_(1, query, self._pooled(read.float()))
            self._mass.index_add_(1, query, self._pooled(mass))
            self._seen.index_add_(0, query, self._pooled(seen.float()))
            parts = [each.sum((1, 2), dtype=torch.float64) for each in (mass * read, mass)]
            self._weight += torch.stack(parts)

    def _mask(self, positions: torch.Tensor, length: int) -> torch.Tensor:
        """bool [heads, R, length]: what the method read, in any of its reads."""
        mask = torch.zeros((len(self._heads), len(positions), length), dtype=torch.bool)
        for keys, rows in self._reads_of(positions):
            found = visible(keys, rows, self._shape.num_heads, length)
            at = keys.positions[rows] - positions[0]
            mask[:, at] |= found if found.shape[0] == 1 else found[self._heads]
        return mask

    def _reads_of(self, positions: torch.Tensor) -> Iterator[tuple[Keys, slice]]:
        """Each read with those of its rows that lie among these positions."""
        ends = torch.stack([positions[0], positions[-1] + 1])
        for keys in self.reads:
            first, last = torch.searchsorted(keys.positions, ends).tolist()
            if first < last:
                yield keys, slice(first, last)

    def _visible(self, positions: torch.Tensor, length: int) -> torch.Tensor:
        """bool [R, length]: what dense attention reads, in the model's own window."""
        distance = positions[:, None] - torch.arange(length)
        window = self._shape.window
        return (distance >= 0) if window is None else (distance >= 0) & (distance < window)

    def _probabilities(self, rows: slice, length: int) -> torch.Tensor:
        """float32 [heads, R, length] of dense attention."""
        shape, group = self._shape, self._shape.num_heads // self._shape.num_kv_heads
        k = self._keys[:length, [head // group for head in self._heads]]
        scores = torch.einsum("thd,lhd->htl", self._q[rows], k) * shape.scale
        if shape.softcap is not None:
            scores = shape.softcap * torch.tanh(scores / shape.softcap)
        scores.masked_fill_(~self._visible(self._positions[rows], length), -torch.inf)
        if self._sinks is None:
            return scores.softmax(-1)
        sink = self._sinks[self._heads, None, None].expand(-1, scores.shape[1], 1)
        return torch.cat([scores, sink], -1).softmax(-1)[..., :-1]

    def _pooled(self, pairs: torch.Tensor) -> torch.Tensor:
        """[..., length] summed over the keys of each cell: [..., cells]."""
        cell, cells = self._choice.cell, self._choice.cells
        padded = torch.nn.functional.pad(pairs, (0, cells * cell - pairs.shape[-1]))
        return padded.view(*pairs.shape[:-1], cells, cell).sum(-1)

    def maps(self, layer: int) -> list[HeadMap]:
        """The maps of the chosen heads."""
        share = self._read / self._seen.clamp(min=1)
        kept = self._weight[0] / self._weight[1]
        rows = cell_rows(self._choice)
        return [
            HeadMap(
                layer,
                head,
                self._seen,
                share[i],
                self._mass[i] / rows[:, None],
                float(self._read[i].sum(dtype=torch.float64) / self._seen.sum(dtype=torch.float64)),
                float(kept[i]),
                None if self.judged is None else Decided.of(self.judged, head),
            )
            for i, head in enumerate(self._heads)
        ]
