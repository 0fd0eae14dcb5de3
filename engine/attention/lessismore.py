"""LessIsMore: a few layers read every key and choose which of them all the other layers read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch

from ...kernels.attend import BlockLists, Keys
from ...kernels.select import Candidates
from ...kernels.select_keys import MAX_BLOCK, UNIONS, KeyRule, cpu_scratch_bytes, select_keys
from .base import Aux, LayerCache, LayerShape, PageField, Step, per_sequence
from .protocols import StepBounds


@dataclass
class Carried:
    """What the layers of one step hand to each other: the latest lists, and whether they were used.

    Written by the selection layers as the step runs down the model, and gone with the step.
    """

    ids: torch.Tensor | None = None  # int32 [T, owners, n], as `select_keys` gives them
    used: bool = False  # by the layer that attended last


@dataclass(frozen=True)
class SelectionPlan:
    """The keys of every row; one per step, shared by the layers of one shape."""

    keys: Keys
    candidates: Candidates
    carried: Carried = field(default_factory=Carried)


@dataclass(frozen=True)
class SelectionLayers(ABC):
    """Layers before `start` are dense. The layer `start` and the layer `correction` are dense too,
    and choose blocks by the scores of the keys they read; the layers after each read what it chose.
    """

    budget: int = 2048
    block: int = 16
    start: int = 2
    correction: int = 12

    def __post_init__(self) -> None:
        if not 16 <= self.block <= MAX_BLOCK or self.block & (self.block - 1):
            raise ValueError(
                f"{self._name}: block must be a power of two in 16 .. {MAX_BLOCK}, got {self.block}"
            )
        if not 3 <= self.budget // self.block <= 256 or self.budget % self.block:
            raise ValueError(
                f"{self._name}: budget must be 3 .. 256 whole blocks of {self.block} tokens, "
                f"got {self.budget} tokens"
            )

    @property
    def _name(self) -> str:
        return type(self).__name__.lower()

    @property
    @abstractmethod
    def rule(self) -> KeyRule:
        """How a selection layer makes the lists."""

    @property
    def align(self) -> int:
        """Prompt chunks may begin anywhere: nothing is remembered from step to step."""
        return 1

    def fields(self, shape: LayerShape, page_size: int) -> dict[str, PageField]:
        """Nothing beyond K and V.

        Raises ValueError for a layer with a sliding window of its own.
        """
        if shape.window is not None:
            raise ValueError(
                f"{self._name}: a layer has a sliding window of its own; use dense there"
            )
        return {}

    def plan(self, shape: LayerShape, step: Step) -> SelectionPlan:
        """The keys, and room for what the selection layers choose."""
        rows = (step.cu_rows, step.positions, step.page_table)
        return SelectionPlan(
            Keys(*rows),
            Candidates(*rows, self.block, step.page_size),
        )

    def summarize(  # noqa: B027  complete as it is
        self, cache: LayerCache, step: Step, plan: SelectionPlan, aux: Aux
    ) -> None:
        """Nothing to finish."""

    def attend(
        self,
        shape: LayerShape,
        cache: LayerCache,
        step: Step,
        plan: SelectionPlan,
        q: torch.Tensor,
        aux: Aux,
    ) -> torch.Tensor:
        """Dense, and perhaps a selection; or the blocks that were selected: [T, H, dv]."""
        carried, keys = plan.carried, plan.keys
        chooses = cache.layer >= self.start and (
            carried.ids is None or cache.layer == self.correction
        )
        carried.used = cache.layer > self.start and not chooses
        if carried.used and carried.ids is not None:
            keys = keys.within(self._lists(carried.ids, plan, shape))
        out, lse = cache.attend(q, keys, shape.scale, shape.softcap, aux.sink_logits)
        if chooses:
            carried.ids = select_keys(
                cache.layout, q, cache.k, plan.candidates, self.rule, shape.scale, lse
            )
        return out

    def kernel_scratch(self, shape: LayerShape, most: StepBounds) -> int:
        """The scores of all blocks for the rows at work."""
        heads = shape.num_heads
        owners = 1 if self.rule.union == "mean_prob" else heads
        blocks = -(-most.length // self.block)
        return cpu_scratch_bytes(most.rows, heads, owners, shape.head_dim, blocks, most.threads)

    def _lists(self, ids: torch.Tensor, plan: SelectionPlan, shape: LayerShape) -> BlockLists:
        if ids.shape[1] == 1:
            ids = ids.expand(-1, shape.num_kv_heads, -1)
        return BlockLists(ids, None, self.block, scattered=True)

    def keys_read(self, shape: LayerShape, step: Step, plan: SelectionPlan) -> torch.Tensor:
        """Of the layer that attended last: all keys, or those of the lists."""
        seen = step.positions + 1
        ids = plan.carried.ids
        if not plan.carried.used or ids is None:
            return per_sequence(step, seen)
        held = (seen[:, None, None] - ids * self.block).clamp(max=self.block)
        return per_sequence(step, held.where(ids >= 0, 0).sum(2).double().mean(1))


@dataclass(frozen=True)
class LessIsMore(SelectionLayers):
    """LessIsMore (Yang et al. 2025, arXiv 2508.07101): for generated tokens, no training needed.

    One list serves all heads. Of `budget` tokens the share `recent` goes to the latest ones and to
    the first `sinks`; the rest, with union=rank_major, to the best of every head, then the second
    best of every head, and so on, and with union=mean_prob to those of the highest probability,
    summed over heads. Tokens are taken in blocks, each as good as its best token: a page's layout
    lets 16 keys cost as much to fetch as one. Which layer corrects best depends on the model: 12
    for Qwen3-8B, 20 for Qwen3-4B, 13 for Llama-3.1-8B.
    """

    sinks: int = 4
    recent: float = 0.25
    union: str = "rank_major"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.recent < 1 or self.union not in UNIONS[1:]:
            raise ValueError(
                f"lessismore: recent must be in [0, 1) and union one of {', '.join(UNIONS[1:])}, "
                f"got {self.recent} and {self.union!r}"
            )
        self.rule  # noqa: B018  refuses sinks that leave no room now

    @property
    def rule(self) -> KeyRule:
        """Sinks and the latest blocks are reserved; where they do not fit, only the latest."""
        listed = self.budget // self.block
        reserved = listed - int(listed * (1 - self.recent))
        first = -(-self.sinks // self.block)
        first = first if first < reserved else 0
        return KeyRule(listed, first, max(reserved - first, 1), self.union)
