"""Tally: what the rows of a step read, added up over the layers, per request and phase."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .attention.base import (
    AttentionMethod,
    BoundedMethod,
    LayerShape,
    PlannedMethod,
    SelectingMethod,
    causal_keys,
    per_sequence,
)
from .batch import Batch, Phase, Run
from .stats import ReadCounts

if TYPE_CHECKING:
    from .forward import Part


@dataclass
class _Layers:
    """Layers that share a plan, and what they have in common."""

    shape: LayerShape
    part: Part
    count: int = 0


class Tally:
    """Asks every layer's method what it read, or once a step where the plan knows."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self._planned: dict[tuple[AttentionMethod, LayerShape, int], _Layers] = {}
        self._sums: dict[Phase, torch.Tensor] = {}

    def note(self, shape: LayerShape, part: Part) -> None:
        """A layer has attended."""
        method = part.method
        if not (isinstance(method, PlannedMethod) and method.reads_are_planned):
            self._add(_counts(shape, part), part.phase, 1)
            return
        layers = self._planned.setdefault((method, shape, id(part.step)), _Layers(shape, part))
        layers.count += 1

    def result(self) -> list[tuple[Run, ReadCounts]]:
        """For every run of the batch, what its rows read in all layers."""
        for layers in self._planned.values():
            part = layers.part
            self._add(_counts(layers.shape, part), part.phase, layers.count)
        self._planned.clear()
        found, place = [], dict.fromkeys(self._sums, 0)
        for run, _ in self._batch.runs:  # within a phase in the order of its step's sequences
            if run.phase in place:
                read, seen, blocks, dense = self._sums[run.phase][:, place[run.phase]].tolist()
                rows = run.stop - run.start
                found.append((run, ReadCounts(rows, read, seen, blocks, int(dense))))
                place[run.phase] += 1
        return found

    def _add(self, counts: torch.Tensor, phase: Phase, times: int) -> None:
        known = self._sums.get(phase)
        self._sums[phase] = counts * times if known is None else known + counts * times


def _counts(shape: LayerShape, part: Part) -> torch.Tensor:
    """float64 [4, S] of one layer: keys read and visible, blocks, whether it fell back to dense."""
    method, step, plan = part.method, part.step, part.plan
    seen = causal_keys(step, shape.window)
    visible, read = per_sequence(step, seen), method.keys_read(shape, step, plan)
    blocks, dense = torch.zeros_like(visible), torch.zeros_like(visible)
    if isinstance(method, SelectingMethod):
        blocks = method.blocks_selected(shape, step, plan)
    most = method.most_keys(shape) if isinstance(method, BoundedMethod) else None
    if most is not None:
        # Means over heads are rounded: half a key is none.
        dense = (read > per_sequence(step, seen.clamp(max=most)) + 0.5).double()
    return torch.stack([read, visible, blocks, dense])
