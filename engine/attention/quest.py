"""Quest: each generated token reads the blocks whose key bounds allow the highest scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ...kernels.attend import BlockLists, Keys
from ...kernels.bounds import REDUCTIONS, key_bounds, select_bounded
from ...kernels.compressed import ListRule
from ...kernels.select import Candidates
from ...kernels.summarize import CompletedBlocks, completed_blocks, slots_per_page
from .base import Aux, LayerCache, LayerShape, PageField, Step, per_sequence


@dataclass(frozen=True)
class QuestPlan:
    """What one step needs in every layer: the keys, the blocks it completes, and the candidates."""

    keys: Keys
    done: CompletedBlocks
    candidates: Candidates


@dataclass(frozen=True)
class Quest:
    """Quest (Tang et al. 2024, arXiv 2406.10774): for generated tokens; prompts are another's.

    Every complete block keeps the least and the greatest of its keys, channel by channel: no key of
    it scores higher than the bound these give. A row reads `budget` tokens: its own block and those
    of the highest bounds. One list serves the query heads of a KV head, by the max or the sum of
    their bounds (the paper's code has a list per query head, which reads more with grouped heads).
    The paper leaves the first two layers dense: decode_attention="0-1:dense; *:quest(...)".
    """

    budget: int = 2048
    block: int = 64
    reduction: str = "max"
    reads_are_planned: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.block < 16 or self.block & (self.block - 1):
            raise ValueError(
                f"quest: block must be a power of two of at least 16, got {self.block}"
            )
        if not 3 <= self._listed <= 256 or self.budget % self.block:
            raise ValueError(
                f"quest: budget must be 3 .. 256 whole blocks of {self.block} tokens, "
                f"got {self.budget} tokens"
            )
        if self.reduction not in REDUCTIONS:
            raise ValueError(
                f"quest: reduction must be one of {', '.join(REDUCTIONS)}, not {self.reduction!r}"
            )

    @property
    def _listed(self) -> int:
        return self.budget // self.block

    @property
    def align(self) -> int:
        """Prompt chunks may begin anywhere: bounds are made from the pages when a block is full."""
        return 1

    def fields(self, shape: LayerShape, page_size: int) -> dict[str, PageField]:
        """Two bounds per block and KV head, in the page of the block's last token.

        Raises ValueError for a layer with a sliding window of its own, or a block that does not
        fit the pages.
        """
        if shape.window is not None:
            raise ValueError("quest: a layer has a sliding window of its own; use dense there")
        slots = slots_per_page(self.block, page_size)
        return {self._field: PageField((slots, shape.num_kv_heads, 2, shape.head_dim))}

    @property
    def _field(self) -> str:
        return f"bounds_{self.block}"

    def plan(self, shape: LayerShape, step: Step) -> QuestPlan:
        """Blocks that this step completes, and lists to be filled by each layer's selection."""
        rows, size = (step.cu_rows, step.positions, step.page_table), step.page_size
        return QuestPlan(
            Keys(*rows),
            completed_blocks(*rows, self.block, size),
            Candidates(*rows, self.block, size),
        )

    def summarize(self, cache: LayerCache, step: Step, plan: QuestPlan, aux: Aux) -> None:
        """The bounds of the blocks that are complete now."""
        key_bounds(cache.layout, cache.k, cache.fields[self._field], plan.done)

    def attend(
        self,
        shape: LayerShape,
        cache: LayerCache,
        step: Step,
        plan: QuestPlan,
        q: torch.Tensor,
        aux: Aux,
    ) -> torch.Tensor:
        """Bound, select, attend: [T, H, dv]."""
        bounds = cache.fields[self._field]
        ids = select_bounded(q, bounds, plan.candidates, ListRule(self._listed), self.reduction)
        keys = plan.keys.within(BlockLists(ids, None, self.block, scattered=True))
        return cache.attend(q, keys, shape.scale, shape.softcap, aux.sink_logits)[0]

    def keys_read(self, shape: LayerShape, step: Step, plan: QuestPlan) -> torch.Tensor:
        """The row's own block up to itself, and whole blocks before it."""
        before = (step.positions // self.block).clamp(max=self._listed - 1)
        return per_sequence(step, step.positions % self.block + 1 + before * self.block)

    def most_keys(self, shape: LayerShape) -> int:
        """The budget."""
        return self.budget

    def blocks_selected(self, shape: LayerShape, step: Step, plan: QuestPlan) -> torch.Tensor:
        """The row's own block, and those before it."""
        return per_sequence(step, (step.positions // self.block).clamp(max=self._listed - 1) + 1)
