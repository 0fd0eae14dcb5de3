"""Tally: what the rows of a step read, added up over the layers, per request and phase."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from .attention.base import LayerShape, Step, causal_keys, per_sequence
from .attention.protocols import BoundedMethod, SelectingMethod, is_planned
from .batch import Batch, Run
from .stats import ReadCounts

if TYPE_CHECKING:
    from .parts import Part


@dataclass
class _Layers:
    """Layers that share a plan."""

    shape: LayerShape
    part: Part
    planned: bool
    count: int = 0


class Tally:
    """Asks every layer's method what it read, or once a step where the plan knows."""

    def __init__(self, batch: Batch) -> None:
        self._lanes = batch.lanes
        self._layers: dict[int, _Layers] = {}  # by the number of their plan
        # By lane, and by where they are summed: what is not known from the plan, on the device.
        self._sums: dict[tuple[int, torch.device], torch.Tensor] = {}
        self.device_sums: dict[tuple[int, torch.device], torch.Tensor] = {}

    def note(self, shape: LayerShape, part: Part) -> None:
        """A layer has attended."""
        layers = self._layers.get(part.number)
        if layers is None:
            layers = self._layers[part.number] = _Layers(shape, part, is_planned(part.method))
        if layers.planned:
            layers.count += 1
        else:
            self._add(_counts(shape, part, part.step, part.plan), part.lane, 1)
            self.device_sums = dict(self._sums)

    def note_planned(self, shape: LayerShape, part: Part) -> None:
        """A layer has attended in a graph: its plan is counted, or else see `share`."""
        if is_planned(part.method):
            self.note(shape, part)

    def share(self, counted: dict[tuple[int, torch.device], torch.Tensor]) -> None:
        """Takes `device_sums` of another: a graph counts there, again and again."""
        self._sums |= counted
        self.device_sums = counted

    def result(self) -> list[tuple[Run, ReadCounts]]:
        """For every run of the batch, what its rows read in all layers."""
        for layers in self._layers.values():
            if layers.planned:
                counts = _counts(layers.shape, layers.part, *layers.part.known)
                self._add(counts, layers.part.lane, layers.count)
        self._layers.clear()
        lanes: dict[int, torch.Tensor] = {}
        for (lane, _), sums in self._sums.items():
            lanes[lane] = lanes[lane] + sums.cpu() if lane in lanes else sums.cpu()
        found = []
        for lane, sums in lanes.items():
            for run, counted in zip(self._lanes[lane].runs, sums.T.tolist(), strict=True):
                read, seen, blocks, dense = counted
                rows = run.stop - run.start
                found.append((run, ReadCounts(rows, read, seen, blocks, int(dense))))
        return found

    def _add(self, counts: torch.Tensor, lane: int, times: int) -> None:
        key = lane, counts.device
        known = self._sums.get(key)
        self._sums[key] = counts * times if known is None else known + counts * times


def _counts(shape: LayerShape, part: Part, step: Step, plan: Any) -> torch.Tensor:
    """float64 [4, S] of one layer: keys read and visible, blocks, whether it fell back to dense."""
    method = part.method
    seen = causal_keys(step, shape.window)
    visible, read = per_sequence(step, seen), method.keys_read(shape, step, plan)
    blocks, dense = torch.zeros_like(visible), torch.zeros_like(visible)
    if isinstance(method, SelectingMethod):
        blocks = method.blocks_selected(shape, step, plan)
    most = method.most_keys(shape) if isinstance(method, BoundedMethod) else None
    if most is not None:
        branches = most if isinstance(most, tuple) else (most,)
        allowed = sum(per_sequence(step, seen.clamp(max=each)) for each in branches)
        # Means over heads are rounded: half a key is none.
        dense = (read > allowed + 0.5).double()
    return torch.stack([read, visible, blocks, dense])
