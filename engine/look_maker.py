"""Who looks on while the steps of a text run, and makes the maps of it."""

from __future__ import annotations

import torch

from ..kernels.attend import Keys
from .attention.base import Aux, LayerShape
from .attention.experts import Chosen
from .attention.watch import Judged, Watch
from .look_kept import KeptMaps
from .look_maps import Choice, HeadMap, LayerMaps


class MapMaker(Watch):
    """A Watch over the steps of a single sequence, all its rows computed in order and once."""

    def __init__(self, choice: Choice) -> None:
        self._choice = choice
        self._layers: dict[int, LayerMaps] = {}
        self._kept: dict[int, KeptMaps] = {}
        self._now: LayerMaps | None = None

    def choose(
        self,
        layer: int,
        shape: LayerShape,
        positions: torch.Tensor,
        chosen: Chosen,
        q: torch.Tensor,
        k: torch.Tensor,
    ) -> None:
        """Keeps what heads of their own choice kept and read."""
        if layer in self._choice.layers:
            maps = self._kept.setdefault(layer, KeptMaps(self._choice, shape))
            maps.add(positions, chosen, q, k)

    def enter(
        self,
        layer: int,
        shape: LayerShape,
        positions: torch.Tensor,
        q: torch.Tensor,
        k: torch.Tensor,
        aux: Aux,
    ) -> None:
        """Keeps the queries of this step, and all keys so far."""
        if layer in self._choice.layers:
            self._now = self._layers.setdefault(layer, LayerMaps(self._choice, shape))
            self._now.begin(positions, q, k, aux)

    def read(self, keys: Keys) -> None:
        """Keeps what the method said it reads."""
        if self._now is not None:
            self._now.reads.append(keys)

    def judge(self, judged: Judged) -> None:
        """Adds up what the heads decided."""
        if self._now is not None:
            known = self._now.judged
            self._now.judged = judged if known is None else known + judged

    def leave(self) -> None:
        """Adds the step's rows to the layer's maps."""
        if self._now is not None:
            self._now.add_rows()
            self._now = None

    def result(self) -> list[HeadMap]:
        """The maps, when every row has been computed."""
        found = []
        for layer in sorted(self._layers):
            kept = self._kept[layer].maps(layer) if layer in self._kept else []
            found += sorted([*self._layers[layer].maps(layer), *kept], key=self._order)
        return found

    def _order(self, head: HeadMap) -> int:
        return self._choice.heads.index(head.head)
