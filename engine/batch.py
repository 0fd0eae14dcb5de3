"""The step as tensors: rows of tokens, and for every layer group where they are written and what
they see.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch

from .attention.base import Step
from .request import Request
from .step_plan import Chunk


class Phase(IntEnum):
    """Which policy a row follows: by its position in the request, not by the size of its chunk."""

    PREFILL = 0
    DECODE = 1


@dataclass(frozen=True)
class Run:
    """Consecutive tokens [start, stop) of one request in one phase."""

    chunk: int  # index into the plan's chunks
    request: Request
    start: int
    stop: int
    phase: Phase


@dataclass(frozen=True)
class Batch:
    """One step's rows, prefill rows first."""

    tokens: torch.Tensor  # int64 [T]
    positions: torch.Tensor  # int64 [T], absolute
    steps: dict[tuple[int, Phase], Step]  # (layer group, phase) -> what its methods get
    last_row: list[int]  # per chunk, the row of its last token
    runs: list[tuple[Run, int]]  # every run with its first row

    @property
    def phases(self) -> list[Phase]:
        """The phases that have rows."""
        return sorted({phase for _, phase in self.steps})


def build_batch(chunks: Sequence[Chunk], num_groups: int, page_size: int, split: bool) -> Batch:
    """Lays the chunks out as rows.

    split: prefill and decode attend by different methods, so their rows form a Step each; otherwise
    all rows are one.
    """
    runs = sorted(
        (run for i, chunk in enumerate(chunks) for run in _runs(i, chunk, split)),
        key=lambda r: r.phase,
    )
    placed: list[tuple[Run, int]] = []
    last_row, row = [0] * len(chunks), 0
    for run in runs:
        placed.append((run, row))
        row += run.stop - run.start
        last_row[run.chunk] = row - 1  # a chunk's later run has the later phase
    tokens = torch.tensor(
        [token for run in runs for token in run.request.tokens(run.start, run.stop)]
    )
    positions = torch.cat([torch.arange(run.start, run.stop) for run in runs])
    steps = {
        (group, phase): _step(placed, phase, group, page_size, positions)
        for phase in sorted({run.phase for run in runs})
        for group in range(num_groups)
    }
    return Batch(tokens, positions, steps, last_row, placed)


def _runs(index: int, chunk: Chunk, split: bool) -> list[Run]:
    start, stop = chunk.start, chunk.start + chunk.count
    border = min(max(len(chunk.request.prompt), start), stop) if split else stop
    cuts = ((start, border, Phase.PREFILL), (border, stop, Phase.DECODE))
    return [Run(index, chunk.request, a, b, phase) for a, b, phase in cuts if a < b]


def _step(
    placed: Sequence[tuple[Run, int]],
    phase: Phase,
    group: int,
    page_size: int,
    positions: torch.Tensor,
) -> Step:
    mine = [(run, row) for run, row in placed if run.phase == phase]
    first = mine[0][1]
    end = mine[-1][1] + mine[-1][0].stop - mine[-1][0].start
    own = positions[first:end]
    counts = [run.stop - run.start for run, _ in mine]
    cu_rows = torch.zeros(len(mine) + 1, dtype=torch.int32)
    cu_rows[1:] = torch.tensor(counts).cumsum(0)
    tables = [run.request.pages[group] for run, _ in mine]
    page_table = torch.full((len(mine), max(map(len, tables))), -1, dtype=torch.int32)
    for i, table in enumerate(tables):
        page_table[i, : len(table)] = torch.tensor(table, dtype=torch.int32)
    sequence = torch.repeat_interleave(torch.arange(len(mine)), torch.tensor(counts))
    slots = page_table[sequence, own // page_size].long() * page_size + own % page_size
    prompt_lens = torch.tensor([len(run.request.prompt) for run, _ in mine])
    return Step(cu_rows, own, slots, page_table, prompt_lens, slice(first, end), page_size)
