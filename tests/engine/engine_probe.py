"""Looking into an engine at work: every row of logits it computes, and engines of chosen pages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from saccade import Engine, RequestOutput, SamplingParams
from saccade.engine.runner import StepResult
from saccade.engine.step_plan import Chunk, PageCopy

Rows = dict[int, torch.Tensor]  # position -> logits float32 [V]


class Recorder:
    """Keeps the logits of every row an engine runs; one that is run again must not change."""

    def __init__(self, engine: Engine, compare: bool = True) -> None:
        """compare: False where rows with NaN are expected."""
        self._compare = compare
        self.page_size = engine.config.page_size
        self.rows: dict[str, Rows] = {}  # by the id of the scheduler's request
        self.counts: list[int] = []  # rows of every step
        self._run = engine._runner.run
        engine._runner.run = self.run  # type: ignore[method-assign]

    def run(self, chunks: Sequence[Chunk], copies: Sequence[PageCopy]) -> StepResult:
        """In place of ModelRunner.run."""
        result = self._run(chunks, copies)
        self.counts.append(sum(chunk.count for chunk in chunks))
        for index, chunk in enumerate(chunks):
            mine = self.rows.setdefault(chunk.request.id, {})
            for start, logits in result.chunk_logits(index):
                for position, row in enumerate(logits, start):
                    known = mine.setdefault(position, row.clone())
                    assert not self._compare or bitwise(known, row), position
        return result

    def matrix(self, request_id: str) -> torch.Tensor:
        """The logits [T, V] of a request none of whose rows were skipped."""
        mine = self.rows[request_id]
        return torch.stack([mine[position] for position in range(len(mine))])


def bitwise(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two float32 tensors have the same bits."""
    return torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))


def kv_bytes(engine: Engine, pages: int) -> int:
    """kv_cache_memory for `pages` pages of every layer group (or as many as its window needs)."""
    return pages * sum(group.bytes_per_page for group in engine.memory.request.groups)


def small_pool(folder: Path, pages: int, **options: Any) -> dict[str, Any]:
    """Engine options with so few pages that requests must make room for each other."""
    size = {"page_size": 16, **options}
    with Engine(folder, **{**size, "kv_cache_memory": 1 << 20}) as probe:
        return {**size, "kv_cache_memory": kv_bytes(probe, pages)}


def greedy(max_tokens: int = 8, **more: Any) -> SamplingParams:
    """Deterministic tokens, no end but the length."""
    return SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, **more)


def tokens_of(output: RequestOutput) -> list[list[int]]:
    """The token ids of every completion."""
    return [each.token_ids for each in output.outputs]


def some_tokens(count: int, seed: int = 7, vocab_size: int = 128) -> list[int]:
    """Random prompt tokens."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, vocab_size, (count,), generator=generator).tolist()
