"""Surroundings as bad as they may be: page ids in any order, pages full of NaN when they are handed
out, budgets that change from step to step, preemption; and an eye on what every step writes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random
from typing import Any

import torch

from saccade import Engine
from saccade.engine.cache import KVCache
from saccade.engine.pages import PagePool
from saccade.engine.runner import StepResult
from saccade.engine.step_builder import StepBuilder
from saccade.engine.step_plan import Chunk, PageCopy

_ODD = 1 << 30  # an index that is none


class Hostile:
    """Spoils an engine's memory and watches its runs. `shared`: pages seen with two holders."""

    def __init__(self, engine: Engine, random: Random) -> None:
        self.shared: set[tuple[int, int]] = set()
        self._engine, self._random = engine, random
        self._limits = engine.scheduler.limits
        self._cache: KVCache = engine._runner._cache
        self._run = engine._runner.run
        engine._runner.run = self.run  # type: ignore[method-assign]
        for group, pool in enumerate(engine.scheduler.tables.pools):
            random.shuffle(pool._free)
            pool.allocate = self._spoiling(group, pool)  # type: ignore[method-assign]

    def next_step(self) -> None:
        """Called before every step: another budget, as small as the attention allows; and now and
        then somebody is preempted for no reason.
        """
        scheduler = self._engine.scheduler
        least, most = self._limits.align, self._limits.max_num_batched_tokens
        budget = self._random.choice([least, self._random.randint(least, most), most])
        scheduler.limits = replace(self._limits, max_num_batched_tokens=budget)
        if scheduler.running and self._random.random() < 0.1:
            step = StepBuilder(scheduler.limits, scheduler.tables.max_chunk, False)
            scheduler._preempt(step, self._random.choice(scheduler.running))

    def run(self, chunks: Sequence[Chunk], copies: Sequence[PageCopy]) -> StepResult:
        """In place of ModelRunner.run: only pages of the step's own tokens may change."""
        own, before = self._own_pages(chunks), self._bits()
        result = self._run(chunks, copies)
        for (layer, name), bits in self._bits().items():
            changed = (bits != before[layer, name]).flatten(1).any(1).nonzero().flatten().tolist()
            group = self._cache.group_of[layer]
            assert {(group, page) for page in changed} <= own, (layer, name, changed, own)
        return result

    def _own_pages(self, chunks: Sequence[Chunk]) -> set[tuple[int, int]]:
        """(group, page) of all tokens that the step computes; nobody else may hold them."""
        pools, size = self._engine.scheduler.tables.pools, self._cache.layout.page_size
        own = set()
        for chunk in chunks:
            first, last = chunk.start // size, (chunk.start + chunk.count - 1) // size
            for group in set(self._cache.group_of):  # not that of tokens which heads keep
                table = chunk.request.pages[group]
                for page in table[first : last + 1]:
                    assert pools[group].references(page) == 1 and (group, page) not in own
                    own.add((group, page))
                self.shared |= {
                    (group, page)
                    for page in table
                    if page >= 0 and pools[group].references(page) > 1
                }
        return own

    def _bits(self) -> dict[tuple[int, str], torch.Tensor]:
        """A copy of all page memory, as bytes."""
        return {
            (layer, name): pages.contiguous().view(torch.uint8).clone()
            for layer in range(len(self._cache.layers))
            for name, pages in self._memory(layer).items()
        }

    def _memory(self, layer: int) -> dict[str, torch.Tensor]:
        cache = self._cache.layers[layer]
        memory = {"k": cache.k, "v": cache.v, **cache.fields}
        return {name: pages for name, pages in memory.items() if pages.numel()}

    def _spoiling(self, group: int, pool: PagePool) -> Callable[[], int]:
        """`pool.allocate`, but what is in the page is nobody's to read."""
        allocate = pool.allocate

        def spoil() -> int:
            page: Any = allocate()
            for layer, of in enumerate(self._cache.group_of):
                if of == group:
                    for pages in self._memory(layer).values():
                        odd = _ODD if pages.dtype == torch.int32 else 255
                        pages[page] = float("nan") if pages.is_floating_point() else odd
            return int(page)

        return spoil
