"""ASA: sliding windows over one latent in local layers, compressed and selected blocks of grouped
latents in global ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from ...kernels.attend import BlockLists, Keys
from ...kernels.compressed import ListRule, compressed, cpu_scratch_bytes
from ...kernels.select import Candidates
from ...kernels.summarize import CompletedBlocks, block_means, completed_blocks, slots_per_page
from .base import Aux, LayerCache, LayerShape, PageField, Step, causal_keys, per_sequence
from .latent_pages import WindowPages, expanded_pages, window_pages
from .protocols import StepBounds

FORMS = ("expanded", "absorbed")


@dataclass(frozen=True)
class LocalPlan:
    """The keys of every row, and (to expand them) the pages in which they lie."""

    keys: Keys
    pages: WindowPages | None


@dataclass(frozen=True)
class GlobalPlan:
    """What one step needs in every global layer."""

    keys: Keys
    done: CompletedBlocks
    candidates: Candidates
    leader: torch.Tensor  # int64 [T]: where each row's list is kept, if several rows share it
    leads: torch.Tensor  # int64 [n]: the rows that choose for themselves and those after them


@dataclass(frozen=True)
class Asa:
    """Alternating sparse attention (arXiv 2511.00819) over latents, for checkpoints trained so.

    Layers with a window are local: attention over the last `window` latents. The others are global,
    as in NSA without its window: attention over the means of complete blocks, and attention over
    `topk` blocks (the first `init` and the latest `local` always, the others by the probability
    that the means get from all heads of a latent group), added under gates. With reuse > 1 the rows
    from a multiple of `reuse` to the next share the list of the first. form says how local layers
    compute: "expanded" makes keys and values of the window's latents, which is cheaper for many
    rows; "absorbed" attends over the latents themselves, as global layers always do.
    """

    block: int = 16
    topk: int = 16
    init: int = 1
    local: int = 2
    reuse: int = 1
    form: str = "absorbed"
    reads_are_planned: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.block < 16 or self.block & (self.block - 1):
            raise ValueError(f"asa: block must be a power of two of at least 16, got {self.block}")
        if self.reuse < 1 or self.block % self.reuse:
            raise ValueError(f"asa: reuse must divide the block of {self.block}, got {self.reuse}")
        if self.form not in FORMS:
            raise ValueError(f"asa: form must be one of {', '.join(FORMS)}, not {self.form!r}")
        if self.local < 1 or not self.init + self.local <= self.topk <= 256:
            raise ValueError(
                f"asa: local must be at least 1 and topk at least init + local, at most 256; "
                f"got {self.local}, {self.topk}, {self.init}"
            )

    @property
    def align(self) -> int:
        """Prefill chunks may begin anywhere."""
        return 1

    def expands(self, shape: LayerShape) -> bool:
        """Global layers never do: their blocks are chosen anew for every row."""
        return shape.window is not None and self.form == "expanded"

    def fields(self, shape: LayerShape, page_size: int) -> dict[str, PageField]:
        """Global: a mean latent per block and group, and the lists that rows share.

        Raises ValueError for a layer that keeps K and V, or blocks or lists that do not fit pages.
        """
        if shape.latent is None:
            raise ValueError("asa: the layers of this model keep K and V; asa needs latents")
        if shape.window is not None:
            return {}
        slots = slots_per_page(self.block, page_size)
        found = {self._means: PageField((slots, shape.num_kv_heads, shape.kept[0]))}
        if page_size % self.reuse:
            raise ValueError(f"asa: reuse {self.reuse} must divide the page size of {page_size}")
        if self.reuse > 1:
            lists = (page_size // self.reuse, shape.num_kv_heads, self.topk)
            found[self._lists] = PageField(lists, torch.int32)
        return found

    @property
    def _means(self) -> str:
        return f"mean_{self.block}"

    @property
    def _lists(self) -> str:
        return f"lists_{self.block}_{self.topk}_{self.init}_{self.local}_{self.reuse}"

    def plan(self, shape: LayerShape, step: Step) -> LocalPlan | GlobalPlan:
        """Local: which pages to expand. Global: the blocks this step completes, and the lists."""
        rows = (step.cu_rows, step.positions, step.page_table)
        if shape.window is not None:
            pages = window_pages(step, shape.window) if self.expands(shape) else None
            return LocalPlan(Keys(*rows, window=shape.window), pages)
        size = step.page_size
        return GlobalPlan(
            Keys(*rows),
            completed_blocks(*rows, self.block, size),
            Candidates(*rows, self.block, size),
            # A page holds whole runs of rows that share a list.
            (step.slots - step.positions % self.reuse) // self.reuse,
            torch.nonzero(step.positions % self.reuse == 0).flatten(),
        )

    def summarize(
        self, cache: LayerCache, step: Step, plan: LocalPlan | GlobalPlan, aux: Aux
    ) -> None:
        """The means of the blocks that are complete now."""
        if isinstance(plan, GlobalPlan):
            block_means(cache.layout, cache.k, cache.fields[self._means], plan.done)

    def attend(
        self,
        shape: LayerShape,
        cache: LayerCache,
        step: Step,
        plan: LocalPlan | GlobalPlan,
        q: torch.Tensor,
        aux: Aux,
    ) -> torch.Tensor:
        """Attention output [T, H, v]."""
        up, latent = aux.up, shape.latent
        if up is None or latent is None:
            raise ValueError("asa: the layer gave no up-projection")
        if isinstance(plan, GlobalPlan):
            coarse, fine = self._branches(cache, plan, up.absorb(q), shape.scale, latent.rank)
            gates = aux.rows["gates"]  # before the up-projection, which is linear
            return up.project((coarse * gates[..., :1] + fine * gates[..., 1:]).to(q.dtype))
        if plan.pages is not None:
            k, v = expanded_pages(cache, plan.pages, up)
            keys = replace(plan.keys, page_table=plan.pages.page_table)
            return replace(cache, k=k, v=v).attend(q, keys, shape.scale)[0]
        return up.project(
            self._over_latents(cache, plan.keys, up.absorb(q), shape.scale, latent.rank)
        )

    @staticmethod
    def _over_latents(
        cache: LayerCache, keys: Keys, q: torch.Tensor, scale: float, rank: int
    ) -> torch.Tensor:
        """Sums of latents [T, H, rank] for absorbed q."""
        return cache.attend(q, keys, scale, value_dim=rank)[0]

    def _branches(
        self, cache: LayerCache, plan: GlobalPlan, q: torch.Tensor, scale: float, rank: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The same over the means of blocks, and over the chosen blocks."""
        rule = ListRule(self.topk, self.init, self.local, self.reuse)
        means = cache.fields[self._means]
        coarse, _, ids = compressed(q, means, plan.candidates, rule, scale, rank)
        lists = BlockLists(self._shared(cache, plan, ids), None, self.block)
        return coarse, self._over_latents(cache, plan.keys.within(lists), q, scale, rank)

    def kernel_scratch(self, shape: LayerShape, most: StepBounds) -> int:
        """Global: the weights of all means for the rows at work."""
        if shape.latent is None or shape.window is not None:
            return 0
        rank, dim = shape.latent.rank, shape.latent.rank + shape.latent.rope
        owners, means = shape.num_kv_heads, most.length // self.block
        return cpu_scratch_bytes(most.rows, shape.num_heads, owners, dim, rank, means, most.threads)

    def _shared(self, cache: LayerCache, plan: GlobalPlan, ids: torch.Tensor) -> torch.Tensor:
        """The list of each row: its own, or the one that the first row of its run chose.

        That row may have been computed in an earlier step, so its list stays in its page.
        """
        if self.reuse == 1:
            return ids
        lists = cache.fields[self._lists].flatten(0, 1)
        lists[plan.leader[plan.leads]] = ids[plan.leads]
        return lists[plan.leader]

    def keys_read(
        self, shape: LayerShape, step: Step, plan: LocalPlan | GlobalPlan
    ) -> torch.Tensor:
        """Local: the window. Global: the row's own block up to itself, and whole blocks before it;
        means do not count.
        """
        if isinstance(plan, LocalPlan):
            return per_sequence(step, causal_keys(step, plan.keys.window))
        before = (step.positions // self.block).clamp(max=self.topk - 1)
        return per_sequence(step, step.positions % self.block + 1 + before * self.block)

    def most_keys(self, shape: LayerShape) -> int:
        """The window, or all blocks of a row."""
        return self.topk * self.block if shape.window is None else shape.window

    def blocks_selected(
        self, shape: LayerShape, step: Step, plan: LocalPlan | GlobalPlan
    ) -> torch.Tensor:
        """Global layers: the row's own block, and those before it."""
        before = (step.positions // self.block).clamp(max=self.topk - 1)
        chosen = before + 1 if isinstance(plan, GlobalPlan) else torch.zeros_like(before)
        return per_sequence(step, chosen)
