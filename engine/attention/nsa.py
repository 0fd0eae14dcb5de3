"""NSA: compressed entries, the blocks that weigh most among them, and a window, under gates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from ...kernels.attend import BlockLists, Keys
from ...kernels.compressed import ListRule, Spans, compressed, cpu_scratch_bytes
from ...kernels.gate import gated_sum
from ...kernels.select import Candidates
from ...kernels.summarize import CompletedBlocks, completed_blocks, slots_per_page, window_means
from ..branches import PHIS, ROPES, SETS, BranchShape
from .base import Aux, LayerCache, LayerShape, PageField, Step, causal_keys, per_sequence
from .protocols import StepBounds

MAPS = ("overlap", "identity", "maxpool")
WORDS = {
    "phi": PHIS,
    "rope": ROPES,
    "forced": ("counted", "extra"),
    "map": MAPS,
    "kv": SETS,
    "branches": ("all", "selected"),
}


@dataclass(frozen=True)
class NsaPlan:
    """What one step needs in every layer: keys by branch, the entries it completes (and where
    their windows begin), and the blocks to choose from.
    """

    keys: Keys
    window: Keys
    done: CompletedBlocks
    first: torch.Tensor  # int64 [n]
    candidates: Candidates
    rule: ListRule
    spans: Spans


@dataclass(frozen=True)
class Nsa:
    """Native sparse attention (Yuan et al. 2025, arXiv 2502.11089), for checkpoints trained so.

    An entry of K and of V stands for the `length` tokens from every multiple of `stride` on, made
    by `phi` of the layer. A row attends to the entries complete at it; to `topk` blocks, the first
    `init`, the latest `local` (its own among them) and the others whose entries got most
    probability from all heads of its KV head; and to its last `window` tokens (window_plus more,
    as some implementations do; 0: no such branch). The three results are added under the layer's
    gates. forced=extra: the forced blocks come on top of topk. map: how entries weigh the blocks
    that they overlap, by the tokens shared ("overlap"; "identity" where entries are blocks) or by
    the heaviest ("maxpool"). phi, rope and kv say how the layer was trained, and must agree with
    it; see `engine/branches.py`.

    branches=selected reads the chosen blocks alone, without gates: it needs no trained weights,
    and is dense attention when all blocks are chosen.
    """

    length: int = 32
    stride: int = 16
    phi: str = "mlp"
    rope: str = "post"
    block: int = 64
    topk: int = 16
    init: int = 1
    local: int = 2
    forced: str = "counted"
    map: str = "overlap"
    window: int = 512
    window_plus: int = 0
    kv: str = "separate"
    branches: str = "all"
    reads_are_planned: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name, words in WORDS.items():
            if getattr(self, name) not in words:
                raise ValueError(
                    f"nsa: {name} must be one of {', '.join(words)}, not {getattr(self, name)!r}"
                )
        if self.block < 16 or self.block & (self.block - 1):
            raise ValueError(f"nsa: block must be a power of two of at least 16, got {self.block}")
        if self.stride < 1 or self.stride & (self.stride - 1) or self.block % self.stride:
            raise ValueError(
                f"nsa: stride must be a power of two that divides the block of {self.block}, "
                f"got {self.stride}"
            )
        if not 0 < self.length <= 1 << 16 or self.length % self.stride:
            raise ValueError(
                f"nsa: length must be a multiple of the stride of {self.stride}, got {self.length}"
            )
        if self.map == "identity" and not self.length == self.stride == self.block:
            raise ValueError("nsa: map=identity needs entries that are blocks: length=stride=block")
        if self.local < 1 or self.init + self.local > self.listed or self.listed > 256:
            raise ValueError(
                f"nsa: local must be at least 1, and topk at least init + local and at most 256 "
                f"(forced=extra: with them); got {self.local}, {self.topk}, {self.init}"
            )
        if self.window_plus and not self.window:
            raise ValueError("nsa: window_plus adds to a window, but window is 0")
        if self.branches == "selected" and (self.phi, self.rope, self.kv) != _PLAIN:
            raise ValueError("nsa: branches=selected needs phi=mean, rope=post and kv=shared")

    @property
    def listed(self) -> int:
        """Blocks of a row."""
        return self.topk + (self.init + self.local if self.forced == "extra" else 0)

    @property
    def align(self) -> int:
        """Prefill chunks may begin anywhere: entries are made from the pages when complete."""
        return 1

    def gates(self, shape: LayerShape) -> int:
        """One for each branch."""
        return (3 if self.window else 2) if self.branches == "all" else 0

    def fields(self, shape: LayerShape, page_size: int) -> dict[str, PageField]:
        """The entries of K, and of V behind them, in the page of their window's last token.

        Raises ValueError for a layer that was not trained so, or sizes that do not fit the pages.
        """
        self._check(shape)
        slots_per_page(self.block, page_size)  # lists name whole blocks of pages
        slots = slots_per_page(self.stride, page_size, least=1)
        width = shape.head_dim + self._value_dim(shape)
        return {self._field: PageField((slots, shape.num_kv_heads, width), by_head=True)}

    def _value_dim(self, shape: LayerShape) -> int:
        """Channels of an entry's value; entries that only choose have none."""
        return shape.v_head_dim if self.branches == "all" else 0

    @property
    def _field(self) -> str:
        return f"entries_{self.length}_{self.stride}_{self.branches}"

    def _check(self, shape: LayerShape) -> None:
        if shape.window is not None:
            raise ValueError("nsa: a layer has a sliding window of its own; use dense there")
        if self.branches == "selected":
            return
        trained = shape.branches
        if trained is None:
            raise ValueError(
                "nsa: the layers of this model compute no gates, so that its branches cannot be "
                "added up; nsa(branches=selected, phi=mean, kv=shared) reads chosen blocks alone"
            )
        wanted = BranchShape(self.phi, self.rope, self.kv)
        for name in ("phi", "rope", "kv"):
            own, other = getattr(wanted, name), getattr(trained, name)
            if own != other:
                raise ValueError(f"nsa: the layers of this model have {name}={other}, not {own}")

    def plan(self, shape: LayerShape, step: Step) -> NsaPlan:
        """Entries that this step completes, and lists to be filled by each layer's selection."""
        rows, size = (step.cu_rows, step.positions, step.page_table), step.page_size
        end = step.positions + 1
        last = end[(end % self.stride == 0) & (end >= self.length)]
        return NsaPlan(
            Keys(*rows),
            Keys(*rows, window=self.window + self.window_plus or None),
            completed_blocks(*rows, self.length, size, self.stride),
            last - self.length,
            Candidates(*rows, self.block, size),
            ListRule(self.listed, self.init, self.local),
            Spans(self.length, self.stride, "max" if self.map == "maxpool" else "sum"),
        )

    def summarize(self, cache: LayerCache, step: Step, plan: NsaPlan, aux: Aux) -> None:
        """The entries that are complete now."""
        entries, done = cache.fields[self._field], plan.done
        if not done.home.shape[0]:
            return
        own = self._sets(cache, entries.shape[2])[0]
        if aux.compress is None:
            window_means(own.layout, own.k, own.v, entries, done)
        else:
            at = done.begin[:, None] + torch.arange(self.length)
            size = step.page_size
            pages = done.members.gather(1, at // size)
            k, v = own.layout.gather_tokens(own.k, own.v, pages, at % size)
            made = aux.compress(k, v, plan.first, step.angles)
            entries.flatten(0, 1)[done.home] = made

    def attend(
        self,
        shape: LayerShape,
        cache: LayerCache,
        step: Step,
        plan: NsaPlan,
        q: torch.Tensor,
        aux: Aux,
    ) -> torch.Tensor:
        """Compressed, selected and window attention, added under gates: [T, H, dv]."""
        scale, value_dim = shape.scale, self._value_dim(shape)
        coarse, _, ids = compressed(
            q,
            cache.fields[self._field],
            plan.candidates,
            plan.rule,
            scale,
            value_dim,
            plan.spans,
            shape.head_dim if value_dim else 0,
        )
        sets, rows = self._sets(cache, shape.num_kv_heads), plan.keys
        lists = BlockLists(ids, None, self.block)
        keys = rows.within(lists)
        fine, _ = sets[1].attend(q, keys, scale, shape.softcap, aux.sink_logits)
        if self.branches == "selected":
            return fine
        parts = [coarse, fine]
        if self.window:
            parts.append(sets[2].attend(q, plan.window, scale)[0])
        return gated_sum(parts, aux.rows["gates"][..., : len(parts)])

    def kernel_scratch(self, shape: LayerShape, most: StepBounds) -> int:
        """The weights of all entries for the rows at work."""
        return cpu_scratch_bytes(
            most.rows,
            shape.num_heads,
            shape.num_kv_heads,
            shape.head_dim,
            self._value_dim(shape),
            Spans(self.length, self.stride).complete(most.length),
            most.threads,
        )

    def _sets(self, cache: LayerCache, kv_heads: int) -> Sequence[LayerCache]:
        """The pages by branch, compressed, selected, window: K and V of their own, or the same."""
        if self.kv == "shared":
            return (cache,) * 3
        bounds = (slice(n * kv_heads, (n + 1) * kv_heads) for n in range(3))
        return [replace(cache, k=cache.k[:, each], v=cache.v[:, each]) for each in bounds]

    def _window_keys(self, step: Step) -> torch.Tensor:
        """int64 [T]: keys of the window branch."""
        if not self.window or self.branches == "selected":
            return torch.zeros_like(step.positions)
        return causal_keys(step, self.window + self.window_plus)

    def keys_read(self, shape: LayerShape, step: Step, plan: NsaPlan) -> torch.Tensor:
        """Chosen blocks, the row's own up to itself, and the window: a key that lies in both is
        read twice. Entries do not count.
        """
        before = (step.positions // self.block).clamp(max=self.listed - 1)
        chosen = step.positions % self.block + 1 + before * self.block
        return per_sequence(step, chosen + self._window_keys(step))

    def most_keys(self, shape: LayerShape) -> tuple[int, ...]:
        """All its blocks, and the window."""
        blocks = self.listed * self.block
        if not self.window or self.branches == "selected":
            return (blocks,)
        return blocks, self.window + self.window_plus

    def blocks_selected(self, shape: LayerShape, step: Step, plan: NsaPlan) -> torch.Tensor:
        """The row's own block, and those before it."""
        return per_sequence(step, (step.positions // self.block).clamp(max=self.listed - 1) + 1)


_PLAIN = ("mean", "post", "shared")
