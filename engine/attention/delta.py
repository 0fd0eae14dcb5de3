"""Delta attention: a sparse pass over all rows, corrected by exact rows at fixed distances."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from ...kernels.attend import Keys
from ...kernels.correct import correct
from ...kernels.merge import merge
from ...kernels.store import unwritten
from .base import Aux, LayerCache, LayerShape, PageField, Step, causal_keys, per_sequence
from .delta_guard import Anchors, guarded, plan_anchors, state_field
from .moba import Moba, MobaPlan

_TAIL = 128  # rows at a prompt's end that are exact, at least
_SLAB = 2048  # rows whose partial results exist at a time, on a processor
_MODES, _BASES = ("lse", "paper", "recompute"), ("window", "moba")

Partial = tuple[torch.Tensor, torch.Tensor]  # out float32 [n, H, dv], lse float32 [n, H]


@dataclass(frozen=True)
class DeltaPlan:
    """Which rows are exact, and which of them corrects each row."""

    base: Keys | MobaPlan
    slabs: tuple[tuple[slice, Keys], ...]  # base, some rows at a time; none: all at once
    exact: torch.Tensor  # int64 [E]: rows that see more than the base shows them
    keys: Keys  # of the exact rows: what the window leaves out, or everything (base=moba)
    source: torch.Tensor  # int64 [T]: index into `exact`, and E where nothing is to be corrected
    own: torch.Tensor  # bool [T]: the row is exact itself
    anchors: Anchors | None  # with anchor_guard


@dataclass(frozen=True)
class Delta:
    """Delta attention (Willette et al. 2025, arXiv 2505.11254): for prompts; decode is another's.

    Every row attends to a window and sinks (or by MoBA); every gamma-th row, the anchor, and the
    prompt's last rows also to all the rest, and a row between anchors takes over what the anchor
    at or before it found there. With o_S the base result, o_F the exact one, o_H, l_H the result
    over the keys outside the window, and a the row's anchor:

    lse        merge(o_S[i], l_S[i]; o_H[a], l_H[a]): convex, each row with its own weight
    paper      o_S[i] + (o_F[a] - o_S[a])
    recompute  o_S[i]: only the exact rows differ from the base

    Anchors are at absolute positions, p % gamma == 0, and `align` is gamma: a prefill chunk, a
    prefix hit and a fork all begin on an anchor, so that no state crosses a cut. The exact rows of
    the end are the last max(128, gamma) + len % gamma of the *prompt*, however it is cut; with a
    longer prompt they would be ordinary rows, so `tail` tells the prefix cache where they begin.
    anchor_guard (0: off; 0.25 is sensible): where the anchor's weight outside of the window exceeds
    that of the anchor before by more than this, in one head, its followers keep to the anchor
    before: one row that retrieves a far key does not spoil those after it. The state of anchors is
    then a page field. block and topk are MoBA's, for base=moba, which has no complement to merge.
    """

    window: int = 2048
    sinks: int = 64
    gamma: int = 64
    mode: str = "lse"
    base: str = "window"
    anchor_guard: float = 0.0
    block: int = 512
    topk: int = 8
    reads_are_planned: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.window < 1 or self.sinks < 0 or self.gamma < 1:
            raise ValueError(
                f"delta: window and gamma must be at least 1 and sinks at least 0, "
                f"got {self.window}, {self.gamma}, {self.sinks}"
            )
        for name, allowed in (("mode", _MODES), ("base", _BASES)):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"delta: {name} must be one of {', '.join(allowed)}, "
                    f"not {getattr(self, name)!r}"
                )
        if self.base == "moba" and (self.mode == "lse" or self.anchor_guard):
            raise ValueError(
                "delta: base=moba has no complement to merge; use mode=paper or mode=recompute, "
                "without anchor_guard"
            )
        if not 0 <= self.anchor_guard < 1 or (self.anchor_guard and self.mode == "recompute"):
            raise ValueError(
                f"delta: anchor_guard must be in [0, 1), and 0 with mode=recompute, "
                f"got {self.anchor_guard}"
            )
        if self.base == "moba":
            self._moba  # noqa: B018  refuses a bad block or topk now

    @property
    def _moba(self) -> Moba:
        return Moba(self.block, self.topk)

    @property
    def align(self) -> int:
        """Prefill chunks begin on anchors."""
        return self.gamma

    def tail(self, prompt_len: int) -> int:
        """The first of the exact rows at the end of a prompt."""
        return max(0, prompt_len - max(_TAIL, self.gamma) - prompt_len % self.gamma)

    def fields(self, shape: LayerShape, page_size: int) -> dict[str, PageField]:
        """The state of anchors with anchor_guard, MoBA's means with base=moba, else nothing.

        Raises ValueError for a layer with a sliding window of its own.
        """
        if shape.window is not None:
            raise ValueError("delta: a layer has a sliding window of its own; use dense there")
        if self.base == "moba":
            return self._moba.fields(shape, page_size)
        if self.anchor_guard:
            return {self._field: state_field(shape, page_size, self.gamma)}
        return {}

    @property
    def _field(self) -> str:
        return f"anchors_{self.gamma}"

    def plan(self, shape: LayerShape, step: Step) -> DeltaPlan:
        """The exact rows of this step and who follows them.

        Raises ValueError if rows before the prompt's tail begin between anchors.
        """
        counts = step.cu_rows.diff()
        sequence = torch.repeat_interleave(torch.arange(counts.shape[0]), counts)
        starts = torch.tensor([self.tail(n) for n in step.prompt_lens.tolist()])[sequence]
        rows = torch.arange(step.positions.shape[0])
        own = (step.positions >= starts) | (step.positions % self.gamma == 0)
        anchor = torch.where(own, rows, rows - step.positions % self.gamma)
        if bool((anchor < step.cu_rows[sequence]).any()):
            raise ValueError(f"delta: rows begin between anchors, every {self.gamma} tokens")
        far = own & (step.positions >= self._reach)
        exact = torch.nonzero(far).flatten()
        number = torch.where(far, far.cumsum(0) - 1, exact.shape[0])
        anchors = None
        if self.anchor_guard:
            anchors = plan_anchors(step, sequence, exact, starts, self.gamma, self._reach)
        base: Keys | MobaPlan
        slabs: tuple[tuple[slice, Keys], ...] = ()
        if self.base == "moba":
            base = self._moba.plan(shape, step)
        else:
            rows_of = (step.cu_rows, step.positions, step.page_table)
            base = Keys(*rows_of, window=self.window, sinks=self.sinks)
            if self.mode == "lse" and anchors is None and not base.positions.is_cuda:
                slabs = slabs_of(base, _SLAB)
        keys = self._keys(step, exact)
        return DeltaPlan(base, slabs, exact, keys, number[anchor], own, anchors)

    @property
    def _reach(self) -> int:
        """Rows before this position see every key in the base already."""
        return 0 if self.base == "moba" else self.window + self.sinks

    def _keys(self, step: Step, exact: torch.Tensor) -> Keys:
        cu_rows = torch.searchsorted(exact, step.cu_rows.long()).int()
        positions = step.positions[exact]
        if self.base == "moba":
            return Keys(cu_rows, positions, step.page_table)
        lo = torch.full_like(positions, self.sinks, dtype=torch.int32)
        hi = (positions - self.window + 1).int()
        return Keys(cu_rows, positions, step.page_table, lo, hi)

    def summarize(self, cache: LayerCache, step: Step, plan: DeltaPlan, aux: Aux) -> None:
        """The base method's summaries."""
        if isinstance(plan.base, MobaPlan):
            self._moba.summarize(cache, step, plan.base, aux)

    def attend(
        self,
        shape: LayerShape,
        cache: LayerCache,
        step: Step,
        plan: DeltaPlan,
        q: torch.Tensor,
        aux: Aux,
    ) -> torch.Tensor:
        """Base, exact rows, correction: [T, H, dv]; fp32 partial results, rounded once."""
        keys = (
            self._moba.select(cache, plan.base, q) if isinstance(plan.base, MobaPlan) else plan.base
        )
        if plan.exact.shape[0] == 0:
            return self._pass(shape, cache, q, keys, aux.sink_logits, q.dtype)[0]
        # A sink logit belongs to the base alone, unless the exact rows are not merged with it.
        sinks = aux.sink_logits if self.base == "moba" else None
        part = self._pass(shape, cache, q[plan.exact], plan.keys, sinks, torch.float32)
        if plan.slabs:
            return self._merged(shape, cache, plan, q, aux, part)
        base = self._pass(shape, cache, q, keys, aux.sink_logits, torch.float32)
        return self._correct(cache, plan, base, part, q.dtype)

    def keys_read(self, shape: LayerShape, step: Step, plan: DeltaPlan) -> torch.Tensor:
        """The base's keys, and in exact rows the rest (with base=moba: all, once more)."""
        extra = torch.zeros_like(step.positions)
        if isinstance(plan.base, MobaPlan):
            extra[plan.exact] = step.positions[plan.exact] + 1
            return self._moba.keys_read(shape, step, plan.base) + per_sequence(step, extra)
        seen = causal_keys(step, self.window, self.sinks)
        extra[plan.exact] = step.positions[plan.exact] + 1 - seen[plan.exact]
        return per_sequence(step, seen + extra)

    def blocks_selected(self, shape: LayerShape, step: Step, plan: DeltaPlan) -> torch.Tensor:
        """The base's blocks, if it has any."""
        if isinstance(plan.base, MobaPlan):
            return self._moba.blocks_selected(shape, step, plan.base)
        return torch.zeros(step.cu_rows.shape[0] - 1, dtype=torch.float64)

    def _pass(
        self,
        shape: LayerShape,
        cache: LayerCache,
        q: torch.Tensor,
        keys: Keys,
        sinks: torch.Tensor | None,
        dtype: torch.dtype,
    ) -> Partial:
        return cache.attend(q, keys, shape.scale, shape.softcap, sinks, dtype)

    def _merged(
        self,
        shape: LayerShape,
        cache: LayerCache,
        plan: DeltaPlan,
        q: torch.Tensor,
        aux: Aux,
        part: Partial,
    ) -> torch.Tensor:
        """Mode lse, some rows at a time: fp32 results of all of them leave every cache."""
        out = unwritten((*q.shape[:2], part[0].shape[2]), q.dtype)
        for rows, keys in plan.slabs:
            base = self._pass(shape, cache, q[rows], keys, aux.sink_logits, torch.float32)
            correct(*base, *part, plan.source[rows], q.dtype, out[rows])
        return out

    def _correct(
        self,
        cache: LayerCache,
        plan: DeltaPlan,
        base: Partial,
        part: Partial,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        """The base's rows with what their exact row found; `part` as `plan.keys` has it."""
        at_exact = (base[0][plan.exact], base[1][plan.exact])
        whole = part[0] if self.base == "moba" else merge(*at_exact, *part)[0]
        if self.mode == "lse":
            table, weights = part
        else:
            # What followers add, and of no weight of its own.
            table, weights = whole - at_exact[0], part[1]
        source = plan.source
        if plan.anchors is not None:
            field = cache.fields[self._field]
            table, weights, source = guarded(
                field,
                plan.anchors,
                (table, weights),
                at_exact[1],
                part[1],
                source,
                plan.own,
                self.anchor_guard,
            )
        if self.mode == "recompute":
            out = base[0].to(dtype)
        else:
            merged = weights if self.mode == "lse" else None
            out = correct(*base, table, merged, source, dtype)
        if self.mode != "lse":
            out[plan.exact] = whole.to(dtype)
        return out


def slabs_of(keys: Keys, size: int) -> tuple[tuple[slice, Keys], ...]:
    """The keys of `size` rows at a time, which neither lo, hi nor blocks restrict."""
    found = []
    for begin in range(0, keys.positions.shape[0], size):
        rows = slice(begin, begin + size)
        positions = keys.positions[rows]
        cu_rows = (keys.cu_rows - begin).clamp(0, positions.shape[0])
        found.append((rows, replace(keys, cu_rows=cu_rows, positions=positions)))
    return tuple(found)
