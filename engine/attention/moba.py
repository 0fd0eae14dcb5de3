"""MoBA: a query head attends to its own block and to the blocks whose mean key suits it best."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from ...kernels.attend import BlockLists, Keys
from ...kernels.select import Candidates, select_blocks
from ...kernels.summarize import CompletedBlocks, block_means, completed_blocks, slots_per_page
from .base import AttentionMethod, Aux, LayerCache, LayerShape, PageField, Step, per_sequence
from .dense import Dense


@dataclass(frozen=True)
class MobaPlan:
    """What one step needs in every layer: the keys, the blocks it completes, and the candidates."""

    keys: Keys
    done: CompletedBlocks
    candidates: Candidates


@dataclass(frozen=True)
class Moba:
    """Mixture of block attention (Lu et al. 2025, arXiv 2502.13189), in prefill and in decode.

    Routing is per query head, on the means of post-RoPE keys of complete earlier blocks, without
    scale or softmax. topk counts the current block, as in the paper's code, unless
    topk_includes_current is 0. One softmax runs over the union of the blocks.
    decode=dense lets generated tokens attend to every key, as in the published results, which read
    only the prompt sparsely; decode=sparse serves them like the prompt. Which layers have it, the
    spec says: "0-28:moba(4096, 12, decode=dense); *:dense" leaves the last ones of 32 dense.
    """

    block: int = 512
    topk: int = 8
    topk_includes_current: int = 1
    decode: str = "sparse"
    reads_are_planned: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.block < 16 or self.block & (self.block - 1):
            raise ValueError(f"moba: block must be a power of two of at least 16, got {self.block}")
        if not 0 <= self.history <= 256 or self.topk_includes_current not in (0, 1):
            raise ValueError(
                f"moba: topk must be at least 1 and at most 256, topk_includes_current 0 or 1, "
                f"got {self.topk}, {self.topk_includes_current}"
            )
        if self.decode not in ("sparse", "dense"):
            raise ValueError(f"moba: decode must be sparse or dense, not {self.decode!r}")

    def for_prefill(self) -> Moba:
        """Itself; how outputs attend makes no difference to prompts."""
        return replace(self, decode="sparse")

    def for_decode(self) -> AttentionMethod:
        """Itself, or dense attention as the option asks for."""
        return self if self.decode == "sparse" else Dense()

    @property
    def history(self) -> int:
        """Blocks chosen besides the current one."""
        return self.topk - self.topk_includes_current

    @property
    def align(self) -> int:
        """Prefill chunks may begin anywhere: means are made from the pages when a block is full."""
        return 1

    def fields(self, shape: LayerShape, page_size: int) -> dict[str, PageField]:
        """One mean per block and KV head, in the page of the block's last token.

        Raises ValueError for a layer with a sliding window of its own, or a block that does not
        fit the pages.
        """
        if shape.window is not None:
            raise ValueError("moba: a layer has a sliding window of its own; use dense there")
        slots = slots_per_page(self.block, page_size)
        return {self._field: PageField((slots, shape.num_kv_heads, shape.head_dim))}

    @property
    def _field(self) -> str:
        return f"mean_{self.block}"

    def plan(self, shape: LayerShape, step: Step) -> MobaPlan:
        """Blocks that this step completes, and lists to be filled by each layer's selection."""
        size = step.page_size
        return MobaPlan(
            Keys(step.cu_rows, step.positions, step.page_table),
            completed_blocks(step.cu_rows, step.positions, step.page_table, self.block, size),
            Candidates(step.cu_rows, step.positions, step.page_table, self.block, size),
        )

    def summarize(self, cache: LayerCache, step: Step, plan: MobaPlan, aux: Aux) -> None:
        """The means of the blocks that are complete now."""
        block_means(cache.layout, cache.k, cache.fields[self._field], plan.done)

    def attend(
        self,
        shape: LayerShape,
        cache: LayerCache,
        step: Step,
        plan: MobaPlan,
        q: torch.Tensor,
        aux: Aux,
    ) -> torch.Tensor:
        """Score, select, attend: [T, H, dv]."""
        keys = self.select(cache, plan, q)
        return cache.attend(q, keys, shape.scale, shape.softcap, aux.sink_logits)[0]

    def keys_read(self, shape: LayerShape, step: Step, plan: MobaPlan) -> torch.Tensor:
        """The row's own block up to itself, and whole blocks before it."""
        before = (step.positions // self.block).clamp(max=self.history)
        return per_sequence(step, step.positions % self.block + 1 + before * self.block)

    def most_keys(self, shape: LayerShape) -> int:
        """All its blocks."""
        return (self.history + 1) * self.block

    def blocks_selected(self, shape: LayerShape, step: Step, plan: MobaPlan) -> torch.Tensor:
        """The row's own block, and those before it."""
        return per_sequence(step, (step.positions // self.block).clamp(max=self.history) + 1)

    def select(self, cache: LayerCache, plan: MobaPlan, q: torch.Tensor) -> Keys:
        """The keys of every row: the blocks that suit each of its heads."""
        ids = select_blocks(q, cache.fields[self._field], plan.candidates, self.history)
        return plan.keys.within(BlockLists(ids, None, self.block))
