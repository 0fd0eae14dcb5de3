"""Forward: the one explicit object that goes down through the model, and knows how each layer
attends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .attention.base import AttentionMethod, Aux, LayerShape, Step
from .attention.spec import AttentionPolicy
from .batch import Batch, Phase
from .cache import KVCache


@dataclass(frozen=True)
class Part:
    """Rows of one phase in one layer: their method, step and plan."""

    method: AttentionMethod
    step: Step
    plan: Any


class Forward:
    """One step: what the model reads (tokens, angles) and what it calls (`attend`)."""

    def __init__(
        self,
        batch: Batch,
        cos: torch.Tensor,
        sin: torch.Tensor,
        shapes: Sequence[LayerShape],
        cache: KVCache,
        policy: AttentionPolicy,
    ) -> None:
        self.tokens = batch.tokens
        self.cos = cos
        self.sin = sin
        self._shapes = shapes
        self._cache = cache
        self._parts = _plan_layers(batch, shapes, cache, policy)

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Stores k and v [T, Hkv, d], then returns the attention output [T, H, dv] for q [T, H, d].

        All rows are written before any row attends: a request's generated tokens see the prompt
        tokens that are computed in the same step.
        """
        shape, cache, parts = self._shapes[layer], self._cache.layers[layer], self._parts[layer]
        for part in parts:
            rows = part.step.rows
            part.method.write(cache, part.step, part.plan, k[rows], v[rows], Aux())
        if len(parts) == 1:
            only = parts[0]
            return only.method.attend(shape, cache, only.step, only.plan, q, Aux())
        out = torch.empty((*q.shape[:2], shape.v_head_dim), dtype=q.dtype)
        for part in parts:
            rows = part.step.rows
            out[rows] = part.method.attend(shape, cache, part.step, part.plan, q[rows], Aux())
        return out


def _plan_layers(
    batch: Batch, shapes: Sequence[LayerShape], cache: KVCache, policy: AttentionPolicy
) -> list[list[Part]]:
    """Every layer's parts; a plan is made once per step for layers with equal method, shape and
    pages.
    """
    plans: dict[tuple[Any, ...], Any] = {}
    layers = []
    for layer, shape in enumerate(shapes):
        parts = []
        for phase in batch.phases:
            method = (policy.prefill if phase is Phase.PREFILL else policy.decode)[layer]
            group = cache.group_of[layer]
            step, key = batch.steps[group, phase], (method, shape, group, phase)
            if key not in plans:
                plans[key] = method.plan(shape, step)
            parts.append(Part(method, step, plans[key]))
        layers.append(parts)
    return layers
