"""Qwen's sparse attention: an indexer scores short blocks, and every head reads the best ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ...kernels.attend import BlockLists, Keys
from ...kernels.pooled import (
    MAX_LISTED,
    Entries,
    PooledRule,
    cpu_scratch_bytes,
    select_pooled,
)
from ...kernels.select import Candidates
from ...kernels.summarize import slots_per_page
from .base import Aux, IndexShape, LayerCache, LayerShape, PageField, Step, per_sequence
from .protocols import StepBounds

_TOKENS, _BLOCKS = "index_tokens", "index_blocks"


@dataclass(frozen=True)
class FirstTurns:
    """The angles of each completed block's first position, looked up when the step is planned: in a
    layer the positions lie where they would have to be asked for.
    """

    cos: torch.Tensor
    sin: torch.Tensor

    def cos_sin(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """float32 [n, r/2] each, of the blocks in their order."""
        return self.cos, self.sin


@dataclass(frozen=True)
class QsaPlan:
    """What one step needs in every layer: its keys, and the blocks that it completes."""

    keys: Keys
    candidates: Candidates
    members: torch.Tensor  # int64 [n, block]: slots of each completed block's tokens
    home: torch.Tensor  # int64 [n]: page * slots per page + slot of its index key
    first: torch.Tensor  # int64 [n]: position of its first token
    turns: FirstTurns | None  # None: no block is complete, or the model turns nothing


@dataclass(frozen=True)
class Qsa:
    """Sparse attention of Qwen4-Exp, for layers with an indexer, as transformers defines it.

    A block's index key is made of the mean of its tokens' index keys by the layer (normed, and
    turned to the block's first position). A block scores the sum over the index heads of the
    positive part of <q, key>; only blocks that end at the row's position or before compete, and the
    best `topk` are read by all heads, and the unfinished block that the row lies in. Equal scores:
    the later block wins.
    """

    block: int = 4
    topk: int = 512
    reads_are_planned: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.block < 4 or self.block & (self.block - 1):
            raise ValueError(f"qsa: block must be a power of two of at least 4, got {self.block}")
        if not 1 <= self.topk < MAX_LISTED:
            raise ValueError(f"qsa: topk must be in 1 .. {MAX_LISTED - 1}, got {self.topk}")

    @property
    def align(self) -> int:
        """Prefill chunks may begin anywhere: a block's index key is made from the pages."""
        return 1

    def fields(self, shape: LayerShape, page_size: int) -> dict[str, PageField]:
        """An index key per token, as it was projected, and one per complete block.

        Raises ValueError for a layer without such an indexer or with a window of its own, or a
        block that does not fit the pages.
        """
        index = _index_of(shape)
        if shape.window is not None:
            raise ValueError("qsa: a layer has a sliding window of its own; use dense there")
        slots = slots_per_page(self.block, page_size, least=4)
        return {
            _TOKENS: PageField((page_size, index.dim)),
            _BLOCKS: PageField((slots, 1, index.dim)),
        }

    def plan(self, shape: LayerShape, step: Step) -> QsaPlan:
        """The keys of every row, and the blocks that end at one of the rows."""
        rows = (step.cu_rows, step.positions, step.page_table)
        done = ((step.positions + 1) % self.block == 0).nonzero().flatten()
        sequence = torch.searchsorted(step.cu_rows.long(), done, right=True) - 1
        first = step.positions[done] + 1 - self.block
        at = first[:, None] + torch.arange(self.block)
        pages = step.page_table[sequence[:, None], at // step.page_size].long()
        slots = slots_per_page(self.block, step.page_size, least=4)
        slot = first % step.page_size // self.block if slots > 1 else torch.zeros_like(first)
        return QsaPlan(
            Keys(*rows),
            Candidates(*rows, self.block, step.page_size),
            pages * step.page_size + at % step.page_size,
            pages[:, -1] * slots + slot,
            first,
            FirstTurns(*step.angles.cos_sin(first)) if step.angles and len(first) else None,
        )

    def summarize(self, cache: LayerCache, step: Step, plan: QsaPlan, aux: Aux) -> None:
        """Stores the tokens' index keys and makes those of the blocks that are complete now."""
        tokens = cache.fields[_TOKENS].flatten(0, 1)
        keys = aux.rows["index_k"]
        tokens[step.slots] = keys[:, 0]
        if not plan.home.shape[0]:  # most decode steps complete none
            return
        if aux.compress is None:
            raise ValueError("qsa: the layer does not say how an index key of a block is made")
        raw = tokens[plan.members][:, :, None]
        cache.fields[_BLOCKS].flatten(0, 1)[plan.home] = aux.compress(
            raw, raw[..., :0], plan.first, plan.turns
        )

    def attend(
        self,
        shape: LayerShape,
        cache: LayerCache,
        step: Step,
        plan: QsaPlan,
        q: torch.Tensor,
        aux: Aux,
    ) -> torch.Tensor:
        """Score, select, attend: [T, H, dv]."""
        entries = Entries(cache.fields[_BLOCKS], self.block, self.block)
        rule = PooledRule(self.topk + 1, 0, 0, "relu")  # the unfinished block's place is its own
        index_q = aux.rows["index_q"]
        ids = select_pooled(index_q, entries, plan.candidates, rule, index_q.shape[2] ** -0.5)
        ids = ids.expand(-1, shape.num_kv_heads, -1)
        keys = plan.keys.within(BlockLists(ids, None, self.block))
        return cache.attend(q, keys, shape.scale, shape.softcap, aux.sink_logits)[0]

    def kernel_scratch(self, shape: LayerShape, most: StepBounds) -> int:
        """What all blocks weigh with the rows that threads share."""
        return cpu_scratch_bytes(most.rows, 1, -(-most.length // self.block), most.threads)

    def keys_read(self, shape: LayerShape, step: Step, plan: QsaPlan) -> torch.Tensor:
        """Whole blocks, and what the row sees of its unfinished one; index keys do not count."""
        whole = ((step.positions + 1) // self.block).clamp(max=self.topk)
        return per_sequence(step, whole * self.block + (step.positions + 1) % self.block)

    def most_keys(self, shape: LayerShape) -> int:
        """All its blocks, and an unfinished one."""
        return (self.topk + 1) * self.block - 1

    def blocks_selected(self, shape: LayerShape, step: Step, plan: QsaPlan) -> torch.Tensor:
        """Whole blocks, and the unfinished one if there is any."""
        whole = ((step.positions + 1) // self.block).clamp(max=self.topk)
        return per_sequence(step, whole + ((step.positions + 1) % self.block != 0))


def _index_of(shape: LayerShape) -> IndexShape:
    if shape.index is None or not shape.index.pooled:
        raise ValueError(
            "qsa: a layer of this model has no indexer that makes keys of blocks; use dense there"
        )
    return shape.index
