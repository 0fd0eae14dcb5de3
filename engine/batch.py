"""The step as tensors: rows of tokens, and for every layer group where they are written and what
they see. Rows that attend alike lie together, in a lane.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import cast

import numpy as np
import numpy.typing as npt
import torch

from .attention.base import TABLE_STRIDE, Angles, Step
from .attention.policy import AttentionPolicy
from .request import Request
from .step_plan import Chunk, LayerGroup

# Steps are laid out in NumPy: for the few numbers of a decode step its calls take a fraction of
# what torch's take, and no time of a step is as easily saved.
Longs = npt.NDArray[np.int64]
Ints = npt.NDArray[np.int32]


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
    policy: AttentionPolicy


@dataclass(frozen=True)
class Lane:
    """Consecutive rows that attend alike, by one policy in one phase."""

    policy: AttentionPolicy
    phase: Phase
    runs: list[Run]  # the sequences of the steps, in their order
    steps: list[Step]  # per layer group, but for that of kept tokens


@dataclass(frozen=True)
class Batch:
    """One step's rows, lane after lane, prefill before decode."""

    tokens: torch.Tensor  # int64 [T]
    positions: torch.Tensor  # int64 [T], absolute
    lanes: list[Lane]
    last_row: list[int]  # per chunk, the row of its last token
    runs: list[tuple[Run, int]]  # every run with its first row

    def tokens_before(self, count: int) -> torch.Tensor:
        """int64 [T, count]: the token 1, 2 ... before each row; -1 where a text begins later."""
        found = np.full((len(self.tokens), count), -1, np.int64)
        for run, row in self.runs if count else ():
            first = max(run.start - count, 0)
            known = [-1] * (count - run.start + first) + list(run.request.tokens(first, run.stop))
            windows = np.lib.stride_tricks.sliding_window_view(_longs(known[:-1]), count)
            found[row : row + run.stop - run.start] = windows[:, ::-1]
        return torch.from_numpy(found)


def build_batch(
    chunks: Sequence[Chunk],
    groups: Sequence[LayerGroup],
    page_size: int,
    angles: Angles | None = None,
    width: Callable[[int], int] = lambda pages: pages,
) -> Batch:
    """Lays the chunks out as rows.

    Requests of equal policies share lanes: one if prefill and decode attend alike, else one for
    each of the two. angles: of the model's rotary embedding, for the methods. width: of page tables
    that hold so many pages.
    """
    lanes: dict[tuple[Phase, str], list[Run]] = {}
    for index, chunk in enumerate(chunks):
        for run in _runs(index, chunk):
            lanes.setdefault((run.phase, run.policy.name), []).append(run)
    ordered = [lanes[key] for key in sorted(lanes)]
    runs = [run for lane in ordered for run in lane]
    placed: list[tuple[Run, int]] = []
    last_row, row = [0] * len(chunks), 0
    for run in runs:
        placed.append((run, row))
        row += run.stop - run.start
        last_row[run.chunk] = row - 1  # a chunk's later run has the later phase
    tokens = _longs([token for run in runs for token in run.request.tokens(run.start, run.stop)])
    positions = np.concatenate([np.arange(run.start, run.stop) for run in runs])
    begins = itertools.accumulate((_rows(lane) for lane in ordered), initial=0)
    own = [(g, group) for g, group in enumerate(groups) if group.kept is None]
    kept = next((g for g, group in enumerate(groups) if group.kept is not None), None)
    found = [
        Lane(
            lane[0].policy,
            lane[0].phase,
            lane,
            [_step(lane, begin, group, page_size, positions, angles, kept, width) for group in own],
        )
        for lane, begin in zip(ordered, begins, strict=False)
    ]
    return Batch(torch.from_numpy(tokens), torch.from_numpy(positions), found, last_row, placed)


def _rows(runs: Sequence[Run]) -> int:
    return sum(run.stop - run.start for run in runs)


def _runs(index: int, chunk: Chunk) -> list[Run]:
    # The scheduler's view of a policy is narrower than what the engine gives to its requests.
    policy = cast(AttentionPolicy, chunk.request.policy)
    start, stop = chunk.start, chunk.start + chunk.count
    border = min(max(len(chunk.request.prompt), start), stop) if policy.differs else stop
    cuts = ((start, border, Phase.PREFILL), (border, stop, Phase.DECODE))
    return [Run(index, chunk.request, a, b, phase, policy) for a, b, phase in cuts if a < b]


def _longs(values: Sequence[int]) -> Longs:
    return np.array(values, dtype=np.int64)


def _step(
    mine: Sequence[Run],
    first: int,
    group: tuple[int, LayerGroup],
    page_size: int,
    positions: Longs,
    angles: Angles | None,
    kept_group: int | None,
    width: Callable[[int], int],
) -> Step:
    end = first + _rows(mine)
    own = positions[first:end]
    counts = _longs([run.stop - run.start for run in mine])
    cu_rows = np.zeros(len(mine) + 1, dtype=np.int32)
    np.cumsum(counts, out=cu_rows[1:])
    tables = [_table(run.request, *group, page_size) for run in mine]
    page_table = _padded([table for table, _ in tables], width)
    sequence = np.repeat(np.arange(len(mine)), counts)
    skipped = _longs([left_out for _, left_out in tables])[sequence]
    pages = page_table[sequence, (own - skipped) // page_size].astype(np.int64)
    kept = None
    if kept_group is not None:
        kept = torch.from_numpy(_padded([run.request.pages[kept_group] for run in mine], width))
    return Step(
        torch.from_numpy(cu_rows),
        torch.from_numpy(own),
        torch.from_numpy(pages * page_size + own % page_size),
        torch.from_numpy(page_table),
        torch.from_numpy(_longs([len(run.request.prompt) for run in mine])),
        slice(first, end),
        page_size,
        torch.from_numpy(skipped) if group[1].compact else None,
        angles,
        kept,
        tuple((run.start, run.stop) for run in mine),
    )


def _padded(tables: Sequence[Sequence[int]], width: Callable[[int], int]) -> Ints:
    """[S, width of the longest], filled up with -1."""
    page_table = np.full((len(tables), width(max(map(len, tables)))), -1, dtype=np.int32)
    for i, table in enumerate(tables):
        page_table[i, : len(table)] = table
    return page_table


def _table(
    request: Request, number: int, group: LayerGroup, page_size: int
) -> tuple[list[int], int]:
    """A request's page table as the step shows it, and how many tokens that leaves out."""
    table = request.pages[number]
    if not group.compact:
        return table, 0
    skipped = request.num_dropped[number] * page_size // TABLE_STRIDE * TABLE_STRIDE
    sinks = group.sink_pages(page_size)
    return table[:sinks] + table[sinks + skipped // page_size :], skipped
