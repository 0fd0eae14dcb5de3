"""InfLLM-V2: the first blocks, a window of blocks, and those whose short means the heads of a group
want most; dense while the text is short.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ...kernels.attend import BlockLists, Keys
from ...kernels.pooled import Entries, PooledRule, select_pooled
from ...kernels.select import Candidates
from ...kernels.summarize import CompletedBlocks, block_means, completed_blocks, slots_per_page
from .base import Aux, LayerCache, LayerShape, PageField, Step, per_sequence
from .row_subsets import RowSubset, row_subset

NORMS = ("coarse", "exact")
_COARSE = 4  # a coarse window is as long as so many of the fine ones, and as far from the next


@dataclass(frozen=True)
class InfllmPlan:
    """What one step needs in every layer: the means it completes, and which rows are sparse."""

    done: tuple[CompletedBlocks, ...]  # fine, and coarse if they serve the lse
    dense: RowSubset
    sparse: RowSubset


@dataclass(frozen=True)
class Infllm:
    """InfLLM-V2 (Zhao et al. 2025, arXiv 2509.24663), as in the MiniCPM4 models; no parameters.

    Scores are probabilities over the means of `kernel` keys every `stride`, summed over the query
    heads of a KV head; a block is as good as the best mean that overlaps it. A row reads the first
    `init` blocks, its own and the `window` / `block` before it, and the best others: `topk` blocks
    and `window` / `block` more in all, under one softmax. norm=coarse: the probabilities' lse is
    over means four times as long and as far apart, which the models were trained with and which
    ranks the heads' votes only; exact: over the means themselves.

    A row is dense if the text up to it, and also the whole prompt, is shorter than dense_len. So
    K and V of a prompt depend on which side of dense_len its length lies: `prompt_mode` tells the
    prefix cache.
    """

    kernel: int = 32
    stride: int = 16
    block: int = 64
    topk: int = 64
    init: int = 1
    window: int = 2048
    dense_len: int = 8192
    norm: str = "coarse"
    reads_are_planned: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("stride", "block"):
            value = getattr(self, name)
            if value < 16 or value & (value - 1):
                raise ValueError(
                    f"infllm: {name} must be a power of two of at least 16, got {value}"
                )
        if self.kernel % self.stride or not self.stride <= self.kernel <= self.block:
            raise ValueError(
                f"infllm: kernel must be a multiple of the stride of {self.stride}, and at most "
                f"the block of {self.block}; got {self.kernel}"
            )
        if self.window % self.block:
            raise ValueError(
                f"infllm: window must be whole blocks of {self.block}, got {self.window}"
            )
        if not self.init + self.local <= self.listed <= 256:
            raise ValueError(
                f"infllm: topk must be more than init, and topk + window / block at most 256 "
                f"blocks; got {self.topk}, {self.init} and {self.window // self.block}"
            )
        if self.norm not in NORMS:
            raise ValueError(f"infllm: norm must be one of {', '.join(NORMS)}, not {self.norm!r}")

    @property
    def local(self) -> int:
        """The latest blocks that are always read: the row's own, and the window's."""
        return self.window // self.block + 1

    @property
    def listed(self) -> int:
        """Blocks that a row reads."""
        return self.topk + self.window // self.block

    @property
    def align(self) -> int:
        """Prefill chunks may begin anywhere: means are made from the pages."""
        return 1

    def prompt_mode(self, prompt_len: int) -> str:
        """Whether a prompt of this length is read densely."""
        return "dense" if prompt_len < self.dense_len else "sparse"

    @property
    def _windows(self) -> tuple[tuple[int, int], ...]:
        """(length, stride) of the means that are kept."""
        fine = (self.kernel, self.stride)
        return (fine, (fine[0] * _COARSE, fine[1] * _COARSE)) if self.norm == "coarse" else (fine,)

    @staticmethod
    def _field(window: tuple[int, int]) -> str:
        return f"mean_{window[0]}_{window[1]}"

    def fields(self, shape: LayerShape, page_size: int) -> dict[str, PageField]:
        """Means of windows, in the page of each window's last token.

        Raises ValueError for a layer with a sliding window of its own, or sizes that do not fit the
        pages.
        """
        if shape.window is not None:
            raise ValueError("infllm: a layer has a sliding window of its own; use dense there")
        slots_per_page(self.block, page_size)  # lists name whole blocks of pages
        return {
            self._field(each): PageField(
                (slots_per_page(each[1], page_size), shape.num_kv_heads, shape.head_dim)
            )
            for each in self._windows
        }

    def plan(self, shape: LayerShape, step: Step) -> InfllmPlan:
        """Means that this step completes; its dense and its sparse rows."""
        counts = step.cu_rows.diff()
        length = torch.maximum(
            torch.repeat_interleave(step.prompt_lens, counts), step.positions + 1
        )
        return InfllmPlan(
            tuple(
                completed_blocks(
                    step.cu_rows, step.positions, step.page_table, size, step.page_size, stride
                )
                for size, stride in self._windows
            ),
            row_subset(step, length < self.dense_len),
            row_subset(step, length >= self.dense_len),
        )

    def summarize(self, cache: LayerCache, step: Step, plan: InfllmPlan, aux: Aux) -> None:
        """The means of the windows that are complete now, under dense rows too."""
        for window, done in zip(self._windows, plan.done, strict=True):
            block_means(cache.layout, cache.k, cache.fields[self._field(window)], done)

    def attend(
        self,
        shape: LayerShape,
        cache: LayerCache,
        step: Step,
        plan: InfllmPlan,
        q: torch.Tensor,
        aux: Aux,
    ) -> torch.Tensor:
        """Score, select, attend; rows of short texts are dense: [T, H, dv]."""
        out = q.new_empty((*q.shape[:2], shape.v_head_dim))
        for part in (plan.dense, plan.sparse):
            if part.count == 0:
                continue
            mine = part.of(q)
            keys = self._select(shape, cache, plan, mine) if part is plan.sparse else part.keys
            found, _ = cache.attend(mine, keys, shape.scale, shape.softcap, aux.sink_logits)
            if part.rows is None:
                return found
            out[part.rows] = found
        return out

    def _select(
        self, shape: LayerShape, cache: LayerCache, plan: InfllmPlan, q: torch.Tensor
    ) -> Keys:
        """The keys of every sparse row: the blocks that its groups of heads want."""
        keys, size = plan.sparse.keys, cache.layout.page_size
        entries = [Entries(cache.fields[self._field(each)], *each) for each in self._windows]
        candidates = Candidates.of(keys, self.block, size)
        rule = PooledRule(self.listed, self.init, self.local)
        coarse = entries[1] if len(entries) > 1 else None
        ids = select_pooled(q, entries[0], candidates, rule, shape.scale, coarse)
        return keys.within(BlockLists(ids, None, self.block))

    def keys_read(self, shape: LayerShape, step: Step, plan: InfllmPlan) -> torch.Tensor:
        """Sparse: the row's own block up to itself, and whole blocks before it. Dense: all."""
        before = (step.positions // self.block).clamp(max=self.listed - 1)
        read = step.positions % self.block + 1 + before * self.block
        return per_sequence(step, plan.dense.choose(step.positions + 1, read))

    def most_keys(self, shape: LayerShape) -> int:
        """All its blocks, or a whole text that is short enough to be read densely."""
        return max(self.listed * self.block, self.dense_len - 1)

    def blocks_selected(self, shape: LayerShape, step: Step, plan: InfllmPlan) -> torch.Tensor:
        """Of sparse rows the row's own block, and those before it."""
        blocks = (step.positions // self.block).clamp(max=self.listed - 1) + 1
        return per_sequence(step, plan.dense.choose(torch.zeros_like(blocks), blocks))
