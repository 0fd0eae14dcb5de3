"""Who attends in every layer of a step, and by which plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .attention.base import AttentionMethod, LayerShape, Step
from .batch import Batch
from .cache import KVCache


@dataclass(frozen=True)
class Part:
    """Rows of one lane in one layer: how they attend, and whose summaries they complete."""

    lane: int  # index into the batch's lanes
    number: int  # of its plan: layers that share one have the same
    method: AttentionMethod
    step: Step
    plan: Any
    known: tuple[Step, Any]  # step and plan in host memory, for what is counted there
    # Both phases' methods: what one of them reads later, all tokens must have written.
    keepers: tuple[tuple[AttentionMethod, Any], ...]


class Planner:
    """Plans every layer; layers with equal method, shape and pages share a lane's plan."""

    def __init__(self, batch: Batch, shapes: Sequence[LayerShape], cache: KVCache) -> None:
        self._lanes = batch.lanes
        self._shapes = shapes
        self._cache = cache
        self._plans: dict[tuple[Any, ...], tuple[int, Any]] = {}
        self._parts: dict[tuple[int, ...], Part] = {}

    def layers(self) -> list[list[Part]]:
        """Per layer, a part for each lane; none for a recurrent layer."""
        lanes = range(len(self._lanes))
        return [
            [] if shape.recurrent else [self._part(layer, lane) for lane in lanes]
            for layer, shape in enumerate(self._shapes)
        ]

    def _part(self, layer: int, lane: int) -> Part:
        """Of layers with the same objects, made once: to compare methods and shapes takes longer
        than to plan them.
        """
        shape, group = self._shapes[layer], self._cache.group_of[layer]
        policy = self._lanes[lane].policy
        both = (policy.prefill[layer], policy.decode[layer])
        key = (id(shape), group, id(both[0]), id(both[1]), lane)
        if key not in self._parts:
            self._parts[key] = self._new_part(shape, group, both, lane)
        return self._parts[key]

    def _new_part(
        self,
        shape: LayerShape,
        group: int,
        both: tuple[AttentionMethod, AttentionMethod],
        lane: int,
    ) -> Part:
        phase = self._lanes[lane].phase
        keepers = tuple(
            (method, self._plan(method, shape, group, lane)[1])
            for method in dict.fromkeys(both)
            if method.fields(shape, self._cache.layout.page_size)
        )
        method, step = both[phase], self._lanes[lane].steps[group]
        number, plan = self._plan(method, shape, group, lane)
        return Part(lane, number, method, step, plan, (step, plan), keepers)

    def _plan(
        self, method: AttentionMethod, shape: LayerShape, group: int, lane: int
    ) -> tuple[int, Any]:
        key = (method, shape, group, lane)
        if key not in self._plans:
            plan = method.plan(shape, self._lanes[lane].steps[group])
            self._plans[key] = len(self._plans), plan
        return self._plans[key]
