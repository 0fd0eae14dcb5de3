"""Forward: the one explicit object that goes down through the model, and knows how each layer
attends.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..kernels.gated_delta import gated_delta
from ..kernels.key_conv import key_conv
from ..kernels.store import write_pages
from .attention.base import KEY_TAIL, STATE, Aux, LayerCache, LayerShape
from .attention.experts import Chosen, EveryPair, ExpertMethod
from .attention.watch import Watch
from .batch import Batch
from .cache import KVCache
from .devices import Staging
from .kept_step import Choice, KeptStep
from .parts import Part, Planner
from .snapshots import Left, Snapshots, plan_states
from .tally import Tally


@dataclass(frozen=True)
class Written:
    """What a recorded step writes beside its result: what it read (see `Tally.device_sums`), and
    what its lists of kept tokens chose.
    """

    sums: dict[tuple[int, torch.device], torch.Tensor]
    choices: list[tuple[KeptStep, Choice]]


class Forward:
    """One step: what the model reads (tokens, angles) and what it calls (`attend`)."""

    def __init__(
        self,
        batch: Batch,
        cos: torch.Tensor,
        sin: torch.Tensor,
        shapes: Sequence[LayerShape],
        cache: KVCache,
        on_layer: Callable[[], None] = lambda: None,
        watch: Watch | None = None,
    ) -> None:
        """on_layer: called when a layer has attended; watch: sees what is read."""
        self._shapes = shapes
        self._cache = cache
        self._parts = Planner(batch, shapes, cache).layers()
        self.tally = Tally(batch)
        # Why what this step does on the device depends on more than `sendable`; None: it does not.
        self.bound_to_host: str | None = None
        self._buffer: torch.Tensor | None = None  # once it is sent
        # What lists whose tokens are replaced have chosen, layer by layer.
        self.choices: list[tuple[KeptStep, Choice]] = []
        self.tokens = batch.tokens
        self.cos = cos
        self.sin = sin
        self._on_layer = on_layer
        self._watch = watch
        self._positions = batch.positions
        self._batch = batch
        self._snapshots: dict[int, Snapshots] = {}  # by layer group
        self._left: list[Left] = []
        for group, states in cache.states.items():
            plan, left = plan_states(batch, group, cache.layout.page_size, states)
            self._snapshots[group] = plan
            self._left.append(left)
        recurrent = [shape.recurrent for shape in shapes if shape.recurrent]
        self._before = batch.tokens_before(max((each.looks_back for each in recurrent), default=0))

    # ---- in graphs of decode steps ----

    def outline(self) -> Hashable:
        """Who attends in every layer, to which rows."""
        places = {id(part): place for place, part in enumerate(self._different_parts())}
        return (
            tuple(tuple(places[id(part)] for part in layer) for layer in self._parts),
            tuple((part.lane, part.number, part.method) for part in self._different_parts()),
        )

    def _different_parts(self) -> list[Part]:
        """Each once: layers that are alike share theirs."""
        return list({id(part): part for layer in self._parts for part in layer}.values())

    def sendable(self) -> Any:
        """All tensors that the step needs on the device, and what goes with them."""
        plans = [
            (part.step, part.plan, [plan for _, plan in part.keepers])
            for part in self._different_parts()
        ]
        own = (self.tokens, self._positions, self.cos, self.sin, self._before)
        return own, plans, self._snapshots

    def send(self, staging: Staging) -> torch.Tensor:
        """Takes the step to the device; methods, and what is known of a part, stay as they are.
        Returns the buffer that holds it there. Only the first time.
        """
        if self._buffer is not None:
            return self._buffer
        (there, _, self._snapshots), known, self._buffer = staging.send(self.sendable())

        def of(part: Part) -> Part:
            keepers = tuple((method, known[id(plan)]) for method, plan in part.keepers)
            step, plan = known[id(part.step)], known[id(part.plan)]
            return replace(part, step=step, plan=plan, keepers=keepers)

        there_of = {id(part): of(part) for part in self._different_parts()}
        self._parts = [[there_of[id(part)] for part in layer] for layer in self._parts]
        self.tokens, self._positions, self.cos, self.sin, self._before = there
        self._batch = replace(self._batch, tokens=self.tokens, positions=self._positions)
        return self._buffer

    @property
    def written(self) -> Written:
        """Tensors of a recorded step, beside its result, that its replays write."""
        return Written(self.tally.device_sums, list(self.choices))

    def note_replay(self, written: Written) -> None:
        """A graph that writes this computes the step: counts its layers, and what they read."""
        for shape, parts in zip(self._shapes, self._parts, strict=True):
            if shape.recurrent:
                self._on_layer()
            for part in parts:
                self.tally.note_planned(shape, part)
                self._on_layer()
        self.tally.share(written.sums)
        for kept, choice in written.choices:
            kept.note(choice)

    def forget(self) -> None:
        """What was done has not happened: the step is computed again."""
        self.tally = Tally(self._batch)
        self.choices.clear()
        self._cache.begin_step()

    def note_states(self) -> None:
        """The step is computed: the states that it leaves are there."""
        for left in self._left:
            left.note()

    # ---- what the model calls ----

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, aux: Aux
    ) -> torch.Tensor:
        """Stores k and v [T, Hkv, d], then returns the attention output [T, H, dv] for q [T, H, d].

        All rows are written before any row attends: a request's generated tokens see the prompt
        tokens that are computed in the same step.
        """
        shape, cache, parts = self._shapes[layer], self._cache.layers[layer], self._parts[layer]
        for part in parts:
            rows = part.step.rows
            if shape.num_kv_heads:
                write_pages(cache.layout, cache.k, cache.v, k[rows], v[rows], part.step.slots)
            for keeper, plan in part.keepers:
                keeper.summarize(cache, part.step, plan, aux.of_rows(rows))
        if self._watch is None:
            return self._attend_parts(shape, cache, parts, q, aux)
        self._watch.enter(layer, shape, self._positions, q, k, aux)
        out = self._attend_parts(shape, replace(cache, watch=self._watch), parts, q, aux)
        self._watch.leave()
        return out

    def _attend_parts(
        self, shape: LayerShape, cache: LayerCache, parts: list[Part], q: torch.Tensor, aux: Aux
    ) -> torch.Tensor:
        if len(parts) == 1:
            return self._attend(shape, cache, parts[0], q, aux)
        out = torch.empty((*q.shape[:2], shape.v_head_dim), dtype=q.dtype)
        for part in parts:
            rows = part.step.rows
            out[rows] = self._attend(shape, cache, part, q[rows], aux.of_rows(rows))
        return out

    def convolve(self, layer: int, k: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Raw keys [T, Hkv, d] convolved over the tokens before each; see `kernels.key_conv`."""
        fields = self._cache.layers[layer].fields
        if KEY_TAIL not in fields:  # one tap: no token before matters
            return key_conv(k, k[:0], torch.empty((len(k), 0), dtype=torch.int64), weight)
        plan, tail = self._carried(layer), fields[KEY_TAIL].flatten(3)
        return plan.convolve(tail, k.flatten(1), weight.flatten(1), residual=True).view(k.shape)

    def recall(
        self, layer: int, name: str, x: torch.Tensor, weight: torch.Tensor, dilation: int = 1
    ) -> torch.Tensor:
        """silu of the causal convolution of x [T, C], in a recurrent layer; see `Snapshots`."""
        tail = self._cache.layers[layer].fields[name]
        return self._carried(layer).convolve(tail, x, weight, dilation)

    def recur(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        decay: torch.Tensor,
        beta: torch.Tensor,
    ) -> torch.Tensor:
        """What the rows read of a recurrent layer's state [T, H, dv]; see `kernels.gated_delta`."""
        states = self._cache.layers[layer].fields[STATE].flatten(0, 1)
        out = gated_delta(q, k, v, decay, beta, states, self._carried(layer).walk)
        self._on_layer()
        return out

    def tokens_before(self, count: int) -> torch.Tensor:
        """int64 [T, count]: the token 1, 2 ... before each row; -1 where a text begins later."""
        return self._before[:, :count]

    def _carried(self, layer: int) -> Snapshots:
        """The plan of a layer that carries something from token to token."""
        return self._snapshots[self._cache.group_of[layer]]

    def choose(self, layer: int, scores: torch.Tensor, thresholds: torch.Tensor | None) -> Chosen:
        """The rows that each expert-choice head chooses by its router's scores, float32 [T, E].

        thresholds: float32 [E], where the checkpoint has any.
        """
        shape, cache = self._shapes[layer], self._cache.layers[layer]
        parts, found = self._parts[layer], []
        every = self._chooses_every_pair(parts)
        if not every:
            self.bound_to_host = "expert-choice heads"
        for part in parts:
            rows = part.step.rows
            method, step, plan = _expert_method(part), part.step, part.plan
            chosen = method.choose(shape, cache, step, plan, scores[rows], thresholds, every)
            found.append(chosen.moved(rows.start))
        if cache.kept is not None and cache.kept.step.latest is not None:
            self.choices.append((cache.kept.step, cache.kept.step.latest))
        return Chosen.joined(found)

    def _chooses_every_pair(self, parts: Sequence[Part]) -> bool:
        """Whether heads give all their pairs: in decode on a GPU, which need not be waited for."""
        if self._buffer is None or self._watch is not None or len(parts) != 1:
            return False
        return parts[0].step.positions.shape[0] == parts[0].step.page_table.shape[0]

    def attend_chosen(
        self, layer: int, chosen: Chosen, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> torch.Tensor:
        """Keeps k and v [N, d] of the chosen rows; their attention output, float32 [N, dv]."""
        shape, cache = self._shapes[layer], self._cache.layers[layer]
        if isinstance(chosen, EveryPair):
            (part,) = self._parts[layer]
            method = _expert_method(part)
            return method.attend_chosen(shape, cache, part.step, part.plan, chosen, q, k, v)
        out = torch.empty(v.shape)
        if self._watch is not None:
            self._watch.choose(layer, shape, self._positions, chosen, q, k)
        for part in self._parts[layer]:
            rows = part.step.rows
            own = ((chosen.rows >= rows.start) & (chosen.rows < rows.stop)).nonzero()[:, 0]
            out[own] = _expert_method(part).attend_chosen(
                shape,
                cache,
                part.step,
                part.plan,
                chosen.of_pairs(own).moved(-rows.start),
                q[own],
                k[own],
                v[own],
            )
        return out

    def _attend(
        self, shape: LayerShape, cache: LayerCache, part: Part, q: torch.Tensor, aux: Aux
    ) -> torch.Tensor:
        out = part.method.attend(shape, cache, part.step, part.plan, q, aux)
        self.tally.note(shape, part)
        self._on_layer()
        return out


def _expert_method(part: Part) -> ExpertMethod:
    if not isinstance(part.method, ExpertMethod):
        raise ValueError(f"a layer has expert-choice heads, which {part.method} does not serve")
    return part.method
