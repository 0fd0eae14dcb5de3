"""Streaming attention: the first few keys and the most recent ones; old pages may go, so that a
stream runs without end.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from ...kernels.attend import Keys
from ...kernels.merge import merge
from ...kernels.rope import apply_rope
from .base import Aux, LayerCache, LayerShape, PageField, Step, causal_keys, per_sequence

_MODES = ("mask", "evict")
_SLAB = 256  # rows turned and merged at a time: their fp32 partial results stay in the cache


@dataclass(frozen=True)
class SinkRows:
    """Up to _SLAB rows whose window has left the sinks behind, and their queries' turn."""

    rows: torch.Tensor  # int64 [n], into the step's rows
    keys: Keys  # the sinks
    cos: torch.Tensor  # float32 [n, r/2]
    sin: torch.Tensor


@dataclass(frozen=True)
class StreamingPlan:
    """The keys of every row: in its window, and behind it the sinks.

    apart: mode=evict, where the sinks are read by other queries than the window; empty else.
    """

    keys: Keys
    apart: tuple[SinkRows, ...] = ()


@dataclass(frozen=True)
class Streaming:
    """StreamingLLM (Xiao et al. 2023, arXiv 2309.17453): row i sees key j when i - j < window or
    j < sinks.

    mode=mask: positions and cache stay as they are. mode=evict: pages between the sinks and the
    window are freed, and positions count within what is kept, as in the paper: the sinks lie right
    before the window, never farther from a row than sinks + window - 1. The keys' rotation holds
    their absolute position, which is right within the window, where distances alone matter; for the
    sinks, whose absolute position is their place in the cache, the query is turned back to its own
    place there. So keys are cached once and never rewritten, a page serves whoever shares it, and a
    row's result depends on its absolute position alone. (The paper caches keys without rotation and
    turns all of them in every step.) With max_model_len beyond the trained length the stream runs
    on in the same memory.
    In a layer with a sliding window of its own the smaller window counts, and there are no sinks.
    """

    sinks: int = 4
    window: int = 2044
    mode: str = "mask"
    reads_are_planned: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.window < 1 or self.sinks < 0:
            raise ValueError(
                f"streaming: window must be at least 1 and sinks at least 0, "
                f"got {self.window}, {self.sinks}"
            )
        if self.mode not in _MODES:
            raise ValueError(
                f"streaming: mode must be one of {', '.join(_MODES)}, not {self.mode!r}"
            )

    @property
    def align(self) -> int:
        """Prefill chunks may begin anywhere."""
        return 1

    def fields(self, shape: LayerShape, page_size: int) -> dict[str, PageField]:
        """Nothing beyond K and V."""
        return {}

    def summarize(self, cache: LayerCache, step: Step, plan: StreamingPlan, aux: Aux) -> None:
        """Nothing to finish."""

    def keeps(self, shape: LayerShape) -> tuple[int, int] | None:
        """Window and sinks, with mode=evict."""
        return self._reach(shape) if self.mode == "evict" else None

    def _reach(self, shape: LayerShape) -> tuple[int, int]:
        if shape.window is None:
            return self.window, self.sinks
        return min(self.window, shape.window), 0

    def plan(self, shape: LayerShape, step: Step) -> StreamingPlan:
        """The keys of every row, and in mode=evict those of its sinks apart."""
        window, sinks = self._reach(shape)
        if self.mode == "mask":
            keys = Keys(step.cu_rows, step.positions, step.page_table, window=window, sinks=sinks)
            return StreamingPlan(keys)
        places = step.positions if step.skipped is None else step.positions - step.skipped
        keys = Keys(step.cu_rows, places, step.page_table, window=window)
        behind = torch.nonzero(step.positions >= window).flatten()
        if sinks == 0 or behind.shape[0] == 0:
            return StreamingPlan(keys)
        slabs = range(0, behind.shape[0], _SLAB)
        return StreamingPlan(
            keys,
            tuple(self._apart(shape, step, places, behind[at : at + _SLAB]) for at in slabs),
        )

    def _apart(
        self, shape: LayerShape, step: Step, places: torch.Tensor, rows: torch.Tensor
    ) -> SinkRows:
        if step.angles is None:
            raise ValueError("streaming: mode=evict needs the model's rotary angles")
        cu_rows = torch.searchsorted(rows, step.cu_rows.long()).int()
        hi = (step.positions[rows] - self.window + 1).clamp(max=self.sinks).int()
        keys = Keys(cu_rows, places[rows], step.page_table, hi=hi)
        cos, sin = step.angles.turn(step.positions[rows], self.sinks + self.window - 1)
        if not shape.rotates:  # where positions do not count, moving a query changes nothing
            cos, sin = torch.ones_like(cos), torch.zeros_like(sin)
        return SinkRows(rows, keys, cos, sin)

    def attend(
        self,
        shape: LayerShape,
        cache: LayerCache,
        step: Step,
        plan: StreamingPlan,
        q: torch.Tensor,
        aux: Aux,
    ) -> torch.Tensor:
        """Window and sinks, in one pass or, for rows that turn, in two: [T, H, dv]."""
        score = (shape.scale, shape.softcap)
        seen = replace(plan.keys, positions=step.positions)
        if not plan.apart:
            return cache.attend(q, plan.keys, *score, aux.sink_logits, seen=seen)[0]
        sinks = aux.sink_logits
        recent, lse = cache.attend(q, plan.keys, *score, sinks, torch.float32, seen=seen)
        out = recent.to(q.dtype)
        for each in plan.apart:
            turned = q[each.rows]
            apply_rope(turned, turned[:, :0], each.cos, each.sin)
            seen = replace(each.keys, positions=step.positions[each.rows])
            first = cache.attend(turned, each.keys, *score, None, torch.float32, seen=seen)
            out[each.rows] = merge(recent[each.rows], lse[each.rows], *first)[0].to(q.dtype)
        return out

    def keys_read(self, shape: LayerShape, step: Step, plan: StreamingPlan) -> torch.Tensor:
        """Window and sinks."""
        return per_sequence(step, causal_keys(step, *self._reach(shape)))

    def most_keys(self, shape: LayerShape) -> int:
        """Window and sinks."""
        return sum(self._reach(shape))
