"""MoSA: heads that choose which tokens they keep and attend to, beside dense heads.

A router gives every token a score for every head. Which tokens a head keeps is a rule over these
scores; a row whose token it keeps attends to what the head has kept so far, and a row whose token
it does not keep gets nothing from it. The rules:

* `whole`, as in training: the best tokens of the whole text. Not causal: what is kept early depends
  on what comes late. For scoring given texts, read in one step.
* `threshold`: tokens whose score is above their head's threshold, found beforehand so that about as
  many are kept as in training. Lists only grow, so pages are shared as those of K and V are. A list
  is never longer than `capacity` times what training keeps, and a `burst` more: pages are planned
  for that many, and a head that has them keeps no more until the text has grown.
* `stream`: the best tokens so far; one that comes in takes the place of the worst. No figures are
  needed beforehand and lists are as long as in training, but pages of the past can be shared only
  where a step ended.

On a GPU nobody waits for what heads choose while tokens are generated: all pairs of a head and a
row go on (see EveryPair), and kernels leave out those that were not chosen, their weights too. The
host has pages for as many tokens as lists may hold, and need not know how many they do.

Memory. The dense heads' K and V lie in the pages of their tokens. Kept tokens lie in pages of their
own (`LayerGroup.kept`): page i of a sequence holds the kept tokens i P .. (i + 1) P - 1 of every
choosing head of every layer, with their K, V, positions and scores. The scheduler knows how long
lists may be (`KeptRule`), never which tokens are in them. How long the lists of `threshold` are
after a token is a page field of that token's own page, so whoever shares the pages of a text knows
where its lists end. A head's part of a page is to the kernels a page of one head: rows of one head
and sequence see the first `lengths` keys of that head's table, where all positions are past ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from ...kernels.attend import Keys
from ...kernels.keep import KeptCounts, KeptState, ListRoom, keep_above, keep_top
from ..config import PAGE_SIZES
from ..kept_rule import KeptRule
from .base import Aux, LayerCache, LayerShape, PageField, Step, per_sequence
from .experts import Chosen, EveryPair, ExpertShape, KeptCache
from .kept_lists import KeptLists
from .protocols import StepBounds

MODES = ("threshold", "stream", "whole")


@dataclass
class Reads:
    """Kept keys that every row read in the layer that attended last, of all heads: float64 [T]."""

    keys: torch.Tensor | None = None


@dataclass(frozen=True)
class MosaPlan:
    """What one step needs in every layer."""

    keys: Keys  # of the dense heads
    room: ListRoom
    sequence: torch.Tensor  # int64 [T]: of each row
    # int64 [T]: tokens in the row's lists before the step whose K and V a step that broke must
    # have again; None: there are none. (See KeptStep.)
    held: torch.Tensor | None
    reads: Reads = field(default_factory=Reads)


@dataclass(frozen=True)
class Mosa:
    """Mixture of sparse attention (Piekos et al. 2025, arXiv 2505.00315), for checkpoints trained
    so. mode: see the module. k: tokens that a head keeps whatever the length, in the modes stream
    and whole; 0: one in `sparsity`, as the checkpoint says, at least 2. tau: a threshold for all
    heads in place of the checkpoint's; 0: these.
    """

    mode: str = "threshold"
    capacity: float = 1.25
    burst: int = 32
    tau: float = 0.0
    k: int = 0
    _lengths: ClassVar[str] = "kept_before"
    _flags: ClassVar[str] = "kept"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mosa: mode must be one of {', '.join(MODES)}, not {self.mode!r}")
        if not 0.01 <= self.capacity <= 1000 or not 0 <= self.tau < 1:
            raise ValueError(
                f"mosa: capacity must be 0.01 to 1000 and tau at least 0 and below 1, "
                f"got {self.capacity} and {self.tau}"
            )
        if self.k == 1 or (self.k and self.mode == "threshold"):
            raise ValueError(
                "mosa: k must be 0 or at least 2, and 0 in mode threshold, where lists only grow; "
                f"got {self.k}"
            )

    @property
    def align(self) -> int:
        """Prefill chunks may begin anywhere."""
        return 1

    @property
    def needs_whole_text(self) -> bool:
        """In the mode `whole`, where the last token may change which ones are kept of all."""
        return self.mode == "whole"

    def kept_rule(self, shape: LayerShape) -> KeptRule | None:
        """How many tokens each head keeps; None for a layer without heads that choose."""
        if shape.experts is None:
            return None
        if self.mode == "threshold":
            percent = round(100 * self.capacity)
            return KeptRule(shape.experts.sparsity, percent=percent, burst=self.burst)
        return KeptRule(shape.experts.sparsity, fixed=self.k, appends=False)

    def fields(self, shape: LayerShape, page_size: int) -> dict[str, PageField]:
        """With thresholds: which heads keep a token, and how many they kept before its page.

        Raises ValueError for a layer without heads that choose, or one without thresholds.
        """
        experts = _experts(shape)
        if self.mode != "threshold":
            return {}
        if not self.tau and not experts.calibrated:
            raise ValueError(
                "mosa(mode=threshold) needs a threshold per head: measure them once with `saccade "
                "calibrate`, or give one for all as tau, or use mosa(mode=stream)"
            )
        return {
            self._flags: PageField((page_size, experts.heads), torch.uint8),
            self._lengths: PageField((experts.heads,), torch.int32),
        }

    def plan(self, shape: LayerShape, step: Step) -> MosaPlan:
        """The keys of the dense heads, and how long lists may be at every row."""
        rows = step.cu_rows.diff().long()
        room = ListRoom(
            step.cu_rows,
            step.positions,
            self._most(shape, step.positions),
            self._most(shape, step.positions + 1),
            _experts(shape).include_first,
        )
        sequence = torch.repeat_interleave(torch.arange(len(rows)), rows)
        held = None
        if self.mode == "stream" and bool((rows > 1).any()):
            before = room.before[step.cu_rows[:-1].long()].long()
            held = before.where(rows > 1, 0)[sequence]
        return MosaPlan(Keys(step.cu_rows, step.positions, step.page_table), room, sequence, held)

    def _most(self, shape: LayerShape, tokens: torch.Tensor) -> torch.Tensor:
        """int32 [T]: `KeptRule.most` of tokens int64 [T]."""
        rule = self.kept_rule(shape)
        if rule is None:
            raise ValueError("mosa: a layer has no heads that choose their tokens")
        wanted = (tokens * rule.percent // (100 * rule.sparsity)).clamp(min=2)
        if rule.fixed:
            wanted = torch.full_like(tokens, rule.fixed)
        return torch.minimum(tokens, wanted + rule.burst).int()

    def summarize(self, cache: LayerCache, step: Step, plan: MosaPlan, aux: Aux) -> None:
        """Nothing of the dense heads."""

    def attend(
        self,
        shape: LayerShape,
        cache: LayerCache,
        step: Step,
        plan: MosaPlan,
        q: torch.Tensor,
        aux: Aux,
    ) -> torch.Tensor:
        """The dense heads: [T, H, dv]."""
        if not shape.num_heads:
            return q.new_empty((*q.shape[:2], shape.v_head_dim))
        return cache.attend(q, plan.keys, shape.scale)[0]

    def choose(
        self,
        shape: LayerShape,
        cache: LayerCache,
        step: Step,
        plan: MosaPlan,
        scores: torch.Tensor,
        thresholds: torch.Tensor | None,
        every: bool = False,
    ) -> Chosen:
        """By the mode's rule. The lists know their new tokens afterwards, but for K and V."""
        kept = _kept(cache)
        if self.mode == "threshold":
            slots = self._above(cache, step, plan, scores, thresholds)
        elif self.mode == "stream":
            state = KeptState(kept.scores, kept.positions, _table(step))
            slots = kept.step.choose(scores, state, plan.room)
        else:
            slots = keep_top(scores, plan.room)
        if every:
            heads, rows = _every_pair(*slots.shape)
        else:
            heads, rows = (slots.T >= 0).nonzero().unbind(1)
        taken, own = slots[rows, heads].long(), scores[rows, heads]
        lengths, replaces = taken + 1, torch.zeros(taken.shape, dtype=torch.bool)
        if self.mode == "stream":
            lengths, replaces = plan.room.after[rows].long(), taken < plan.room.before[rows]
        if not every:
            return Chosen(rows, heads, own, taken, lengths, replaces)
        chosen = taken >= 0
        own, lengths = own.where(chosen, 0.0), lengths.where(chosen, 0)
        return EveryPair(rows, heads, own, taken, lengths, replaces & chosen)

    def _above(
        self,
        cache: LayerCache,
        step: Step,
        plan: MosaPlan,
        scores: torch.Tensor,
        thresholds: torch.Tensor | None,
    ) -> torch.Tensor:
        if self.tau or thresholds is None:
            thresholds = torch.full(scores.shape[1:], self.tau)
        counts = KeptCounts(cache.fields[self._flags], cache.fields[self._lengths], step.page_table)
        return keep_above(scores, thresholds, counts, plan.room)

    def attend_chosen(
        self,
        shape: LayerShape,
        cache: LayerCache,
        step: Step,
        plan: MosaPlan,
        chosen: Chosen,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
    ) -> torch.Tensor:
        """Keeps k and v of the chosen rows, and attends to the lists: float32 [N, dv]."""
        plan.reads.keys = torch.zeros(step.positions.shape, dtype=torch.float64).index_add_(
            0, chosen.rows, chosen.lengths.double()
        )
        table, kept = _table(step), _kept(cache)
        grow = self.mode != "stream"
        lists = KeptLists(cache.layout, kept, table, plan.sequence, step.positions, grow)
        if grow:
            lists.note(chosen)
        if plan.held is not None:
            lists.save(chosen, plan.held)
        return lists.attend(chosen, q, k, v, shape.scale)

    def kernel_scratch(self, shape: LayerShape, most: StepBounds) -> int:
        """Where tokens are replaced, a thread has scores, positions and order of a list."""
        rule = self.kept_rule(shape)
        if rule is None or self.mode != "stream":
            return 0
        return most.threads * 3 * 4 * (rule.most(most.length) + max(PAGE_SIZES))

    def keys_read(self, shape: LayerShape, step: Step, plan: MosaPlan) -> torch.Tensor:
        """All keys by the dense heads, and the lists by those that chose the row."""
        experts = _experts(shape)
        read = (step.positions + 1).double() * shape.num_heads
        if plan.reads.keys is not None:
            read = read + plan.reads.keys
        return per_sequence(step, read / (shape.num_heads + experts.heads))


def _every_pair(rows: int, heads: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Head and row, int64 [N] each, of all pairs."""
    pairs = torch.arange(rows * heads)
    return pairs // rows, pairs % rows


def _experts(shape: LayerShape) -> ExpertShape:
    if shape.experts is None:
        raise ValueError("mosa: the heads of this model do not choose their tokens; use another")
    return shape.experts


def _kept(cache: LayerCache) -> KeptCache:
    if cache.kept is None:
        raise ValueError("mosa: a layer has no pages for kept tokens")
    return cache.kept


def _table(step: Step) -> torch.Tensor:
    if step.kept_table is None:
        raise ValueError("mosa: the step has no pages of kept tokens")
    return step.kept_table
