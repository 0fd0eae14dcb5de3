"""Adaptive heads: each query and head reads its far keys only where they are foretold to matter."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import inf, log

import torch

from ...kernels import gpu
from ...kernels.attend import BlockLists, Keys
from ...kernels.bounds import key_bounds
from ...kernels.merge import merge
from ...kernels.moments import (
    KINDS,
    MomentBlocks,
    MomentRule,
    far_mass,
    key_moments,
    moment_blocks,
)
from ...kernels.select import Candidates
from ...kernels.summarize import CompletedBlocks, completed_blocks, slots_per_page
from .base import (
    Aux,
    LayerCache,
    LayerShape,
    PageField,
    Step,
    causal_keys,
    per_sequence,
)
from .watch import Judged

_SLAB = 256  # rows merged at a time: their fp32 partial results stay in the cache
_LISTED = 65536  # keys that one entry of a list of far keys stands for: all or none are read

Partial = tuple[torch.Tensor, torch.Tensor]  # out float32 [n, H, dv], lse float32 [n, H]


@dataclass
class Decided:
    """What the layer that attended last decided: written by it, read by the statistics."""

    far: torch.Tensor | None = None  # bool [T, H]: heads that read their far keys


@dataclass(frozen=True)
class AdaptivePlan:
    """The local keys of every row, and which keys are far."""

    local: Keys  # window and sinks
    hi: torch.Tensor  # int32 [T]: where the window begins; far keys lie between it and the sinks
    done: MomentBlocks
    bounded: CompletedBlocks | None  # with bound=1: the blocks whose bounds are written
    candidates: Candidates
    decided: Decided = field(default_factory=Decided)


@dataclass(frozen=True)
class Adaptive:
    """Query-adaptive attention (QAdA, arXiv 2502.09647), in prefill and in decode, no training.

    A row attends to a window and sinks, exactly, and with that knows what these weigh, l_L (sink
    logits of the model included). What the keys far behind would weigh, l_F, is foretold from their
    mean and covariance as if their scores were normally distributed: log n + c <q, mean> +
    c^2 / 2 q' S q. If the local keys make up the share `tau` of all, sigmoid(l_L - l_F) >= tau, the
    head takes its local result; else it reads the far keys too, and is exact. tau=0 is a window,
    tau=1 dense attention.

    moments=blocks keeps mean and variances for every `block` tokens and adds up their shares: the
    most reliable, and it reads 1/block of what it may save. moments=diagonal keeps variances of all
    keys so far, moments=full their covariance, as the paper has it, in parts (see MomentRule).
    Far keys that are no whole block are counted by their number.

    Two moments do not show one key that alone has a high score. bound=1 is the safe test: the
    least and greatest keys of every block bound l_F from above, and a head stays local only if the
    bound allows it too; with tau = 0.9 no result then misses more than a tenth of its mass. It is
    strict, and may seldom say yes.
    """

    window: int = 1024
    sinks: int = 16
    tau: float = 0.9
    moments: str = "blocks"
    block: int = 64
    bound: int = 0

    def __post_init__(self) -> None:
        if self.moments not in KINDS:
            raise ValueError(
                f"adaptive: moments must be one of {', '.join(KINDS)}, not {self.moments!r}"
            )
        if self.block < 16 or self.block & (self.block - 1):
            raise ValueError(
                f"adaptive: block must be a power of two of at least 16, got {self.block}"
            )
        if self.window < self.block or self.sinks < 0 or self.bound not in (0, 1):
            raise ValueError(
                f"adaptive: window must be no shorter than a block of {self.block} tokens, sinks "
                f"at least 0 and bound 0 or 1, got {self.window}, {self.sinks}, {self.bound}"
            )

    @property
    def rule(self) -> MomentRule:
        """Which moments the pages keep."""
        return MomentRule(self.moments, self.block, self.sinks)

    @property
    def threshold(self) -> float:
        """By how much l_L must exceed l_F."""
        if 0 < self.tau < 1:
            return log(self.tau / (1 - self.tau))
        return -inf if self.tau <= 0 else inf

    @property
    def align(self) -> int:
        """Prefill chunks may begin anywhere: moments are made from the pages, block by block."""
        return 1

    def fields(self, shape: LayerShape, page_size: int) -> dict[str, PageField]:
        """The moments of every block, and with bound=1 its bounds.

        Raises ValueError for a layer with a sliding window of its own or with capped scores, or for
        a block that does not fit the pages.
        """
        if shape.window is not None:
            raise ValueError("adaptive: a layer has a sliding window of its own; use dense there")
        if shape.softcap is not None:
            raise ValueError("adaptive: a layer caps its scores, which moments do not foretell")
        slots, heads, dim = (
            slots_per_page(self.block, page_size),
            shape.num_kv_heads,
            shape.head_dim,
        )
        rows = self.rule.entry_rows(dim)
        found = {self._moments: PageField((slots, heads, rows, dim), torch.float32)}
        if self.bound:
            found[self._bounds] = PageField((slots, heads, 2, dim))
        return found

    @property
    def _moments(self) -> str:
        return f"moments_{self.moments}_{self.block}_{self.sinks}"

    @property
    def _bounds(self) -> str:
        return f"bounds_{self.block}"

    def plan(self, shape: LayerShape, step: Step) -> AdaptivePlan:
        """Local and far keys, and the blocks that this step completes."""
        rows, size = (step.cu_rows, step.positions, step.page_table), step.page_size
        return AdaptivePlan(
            Keys(*rows, window=self.window, sinks=self.sinks),
            (step.positions - self.window + 1).int(),
            moment_blocks(*rows, self.block),
            completed_blocks(*rows, self.block, size) if self.bound else None,
            Candidates(*rows, self.block, size),
        )

    def summarize(self, cache: LayerCache, step: Step, plan: AdaptivePlan, aux: Aux) -> None:
        """The moments, and perhaps the bounds, of the blocks that are complete now."""
        key_moments(cache.layout, cache.k, cache.fields[self._moments], plan.done, self.rule)
        if plan.bounded is not None:
            key_bounds(cache.layout, cache.k, cache.fields[self._bounds], plan.bounded)

    def attend(
        self,
        shape: LayerShape,
        cache: LayerCache,
        step: Step,
        plan: AdaptivePlan,
        q: torch.Tensor,
        aux: Aux,
    ) -> torch.Tensor:
        """Local keys, decision, far keys: [T, H, dv]; fp32 partial results, rounded once."""
        local = cache.attend(q, plan.local, shape.scale, None, aux.sink_logits, torch.float32)
        far = self.decide(shape, cache, plan, q, local[1])
        plan.decided.far = far
        if cache.watch is not None:
            needed = self.oracle(shape, cache, plan, q, local[1])
            cache.watch.judge(Judged.of(far, needed, plan.hi > self.sinks))
        if gpu.serves(q):
            # Which rows there are is not known to the host: all of them, most with empty lists.
            every = torch.arange(q.shape[0])
            part = self.far_part(shape, cache, plan, q, every, far)
            return merge(*local, *part)[0].to(q.dtype)
        out = local[0].to(q.dtype)
        rows = torch.nonzero(far.any(1)).flatten()
        for at in range(0, rows.shape[0], _SLAB):
            some = rows[at : at + _SLAB]
            part = self.far_part(shape, cache, plan, q, some, far[some])
            out[some] = merge(local[0][some], local[1][some], *part)[0].to(q.dtype)
        return out

    def decide(
        self,
        shape: LayerShape,
        cache: LayerCache,
        plan: AdaptivePlan,
        q: torch.Tensor,
        local: torch.Tensor,
    ) -> torch.Tensor:
        """bool [T, H]: whether a head needs its far keys; local: float32 [T, H], what the others
        weigh. NaN anywhere: it does.
        """
        stays = local - self.foretold(shape, cache, plan, q) >= self.threshold
        if self.bound:
            stays &= local - self.foretold(shape, cache, plan, q, "bounds") >= self.threshold
        return ~stays & (plan.hi > self.sinks)[:, None]

    def oracle(
        self,
        shape: LayerShape,
        cache: LayerCache,
        plan: AdaptivePlan,
        q: torch.Tensor,
        local: torch.Tensor,
    ) -> torch.Tensor:
        """bool [T, H]: the decisions if l_F were known, which takes reading every key."""
        unseen, needed = replace(cache, watch=None), torch.zeros(local.shape, dtype=torch.bool)
        rows = torch.nonzero(plan.hi > self.sinks).flatten()
        for at in range(0, rows.shape[0], _SLAB):
            some = rows[at : at + _SLAB]
            every = torch.ones((some.shape[0], q.shape[1]), dtype=torch.bool)
            mass = self.far_part(shape, unseen, plan, q, some, every)[1]
            needed[some] = ~(local[some] - mass >= self.threshold)
        return needed

    def foretold(
        self,
        shape: LayerShape,
        cache: LayerCache,
        plan: AdaptivePlan,
        q: torch.Tensor,
        kind: str | None = None,
    ) -> torch.Tensor:
        """float32 [T, H]: l_F by the moments, or ("bounds") what it cannot exceed."""
        entries = cache.fields[self._bounds if kind == "bounds" else self._moments]
        return far_mass(
            q, entries, plan.candidates, self.rule, kind or self.moments, self.window, shape.scale
        )

    def far_part(
        self,
        shape: LayerShape,
        cache: LayerCache,
        plan: AdaptivePlan,
        q: torch.Tensor,
        rows: torch.Tensor,
        far: torch.Tensor,
    ) -> Partial:
        """Attention of some rows [n] over their far keys, in the heads far, bool [n, H]."""
        hi = plan.hi[rows]
        length = plan.local.page_table.shape[1] * cache.layout.page_size
        entries = torch.arange(-(-length // _LISTED), dtype=torch.int32)
        keys = Keys(
            torch.searchsorted(rows, plan.local.cu_rows.long()).int(),
            plan.local.positions[rows],
            plan.local.page_table,
            lo=torch.full_like(hi, self.sinks),
            hi=hi,
            blocks=BlockLists(
                torch.where(far[..., None], entries, -1).contiguous(),
                torch.arange(rows.shape[0], dtype=torch.int32),
                _LISTED,
            ),
        )
        return cache.attend(q[rows], keys, shape.scale, out_dtype=torch.float32)

    def keys_read(self, shape: LayerShape, step: Step, plan: AdaptivePlan) -> torch.Tensor:
        """Of the layer that attended last: the local keys, and the far ones of heads that asked."""
        read = causal_keys(step, self.window, self.sinks).double()
        if plan.decided.far is not None:
            share = plan.decided.far.double().mean(1)
            read += share * (plan.hi - self.sinks).clamp(min=0)
        return per_sequence(step, read)
