"""MiniMax's block-sparse attention: a small indexer scores every key, and each KV head reads the
blocks that hold its index head's best keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ...kernels.attend import BlockLists, Keys
from ...kernels.select import Candidates
from ...kernels.select_keys import MAX_BLOCK, KeyRule, cpu_scratch_bytes, select_keys
from ...kernels.store import write_pages
from ...kernels.summarize import slots_per_page
from .base import Aux, IndexShape, LayerCache, LayerShape, PageField, Step, per_sequence
from .protocols import StepBounds

_FIELD = "index_keys"


@dataclass(frozen=True)
class MsaPlan:
    """What one step needs in every layer."""

    keys: Keys
    candidates: Candidates


@dataclass(frozen=True)
class Msa:
    """Block-sparse attention of MiniMax-M3, for layers with an indexer, as transformers defines it.

    An index head scores a key by the plain product of its query and the token's one index key; a
    block is as good as its best key that the row sees. Each KV head (or, where there are fewer of
    them, each group of query heads) has its index head's list: `topk` blocks, the row's own and the
    `local` - 1 before it always among them. Equal scores: the later block wins.
    """

    block: int = 128
    topk: int = 16
    local: int = 1
    reads_are_planned: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 16 <= self.block <= MAX_BLOCK or self.block & (self.block - 1):
            raise ValueError(
                f"msa: block must be a power of two in 16 .. {MAX_BLOCK}, got {self.block}"
            )
        if not 1 <= self.local <= self.topk <= 256:
            raise ValueError(
                f"msa: local must be at least 1 and topk at least local, at most 256; "
                f"got {self.local} and {self.topk}"
            )

    @property
    def align(self) -> int:
        """Prefill chunks may begin anywhere: index keys are a token's own."""
        return 1

    def fields(self, shape: LayerShape, page_size: int) -> dict[str, PageField]:
        """An index key per token, laid out as a page of K with one head.

        Raises ValueError for a layer without an indexer or with a window of its own, or a block
        that does not fit the pages.
        """
        index = _index_of(shape)
        if shape.window is not None:
            raise ValueError("msa: a layer has a sliding window of its own; use dense there")
        slots_per_page(self.block, page_size)  # lists name whole blocks of pages
        return {_FIELD: PageField((index.dim * page_size,))}

    def plan(self, shape: LayerShape, step: Step) -> MsaPlan:
        """The keys of every row; each layer adds its lists."""
        rows = (step.cu_rows, step.positions, step.page_table)
        return MsaPlan(Keys(*rows), Candidates(*rows, self.block, step.page_size))

    def summarize(self, cache: LayerCache, step: Step, plan: MsaPlan, aux: Aux) -> None:
        """Stores the index keys of the step's tokens."""
        keys = aux.rows["index_k"]
        pages, none = cache.layout.key_pages(cache.fields[_FIELD], keys.shape[2])
        write_pages(cache.layout, pages, none, keys, keys[..., :0], step.slots)

    def attend(
        self,
        shape: LayerShape,
        cache: LayerCache,
        step: Step,
        plan: MsaPlan,
        q: torch.Tensor,
        aux: Aux,
    ) -> torch.Tensor:
        """Score, select, attend: [T, H, dv]."""
        index_q = aux.rows["index_q"]
        ids = select_keys(
            cache.layout,
            index_q,
            cache.layout.key_pages(cache.fields[_FIELD], index_q.shape[2])[0],
            plan.candidates,
            KeyRule(self.topk, 0, self.local, "per_head"),
            1.0,
            torch.zeros(index_q.shape[:2]),  # of no matter for lists per head
        )
        if ids.shape[1] != shape.num_kv_heads:
            ids = ids.repeat_interleave(shape.num_heads // ids.shape[1], dim=1)
        keys = plan.keys.within(BlockLists(ids, None, self.block))
        return cache.attend(q, keys, shape.scale, shape.softcap, aux.sink_logits)[0]

    def kernel_scratch(self, shape: LayerShape, most: StepBounds) -> int:
        """The scores of all blocks for the rows at work."""
        index = _index_of(shape)
        blocks = -(-most.length // self.block)
        return cpu_scratch_bytes(
            most.rows, index.heads, index.heads, index.dim, blocks, most.threads
        )

    def keys_read(self, shape: LayerShape, step: Step, plan: MsaPlan) -> torch.Tensor:
        """The row's own block up to itself, and whole blocks before it; index keys do not count."""
        before = (step.positions // self.block).clamp(max=self.topk - 1)
        return per_sequence(step, step.positions % self.block + 1 + before * self.block)

    def most_keys(self, shape: LayerShape) -> int:
        """All its blocks."""
        return self.topk * self.block

    def blocks_selected(self, shape: LayerShape, step: Step, plan: MsaPlan) -> torch.Tensor:
        """The row's own block, and those before it."""
        return per_sequence(step, (step.positions // self.block).clamp(max=self.topk - 1) + 1)


def _index_of(shape: LayerShape) -> IndexShape:
    if shape.index is None or shape.index.pooled:
        raise ValueError("msa: a layer of this model has no indexer of tokens; use dense there")
    return shape.index
