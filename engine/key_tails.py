"""Keys convolved over the tokens before them: what a step takes from pages and leaves there.

Pages hold the convolved keys. To go on, a step also needs the raw keys of the taps - 1 tokens
before its first one. Every page keeps those of its latest tokens, in a ring by position: a full
page the raw keys of its end, for whoever continues after it (a prefix hit, a fork); a page that is
being filled those of its owner's last tokens. Who shared a page that is not full would find the
owner's, so requests fork at the beginning of a page (`SchedulerLimits.fork_align`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..kernels.key_conv import key_conv
from .batch import Batch, Run

Places = tuple[torch.Tensor, torch.Tensor]  # page ids and slots of their rings, int64 [N] each


@dataclass(frozen=True)
class KeyTails:
    """One step's plan for the convolved layers of a layer group."""

    before: torch.Tensor  # int64 [T, taps - 1], as `key_conv` takes it
    loads: Places  # the raw keys of earlier steps
    stores: Places  # where raw keys of this step go
    rows: torch.Tensor  # int64: which ones

    @staticmethod
    def of(batch: Batch, group: int, page_size: int, taps: int) -> KeyTails:
        """The plan for a batch; in pages of layer group `group`."""
        pieces: dict[int, list[tuple[Run, int]]] = {}
        for run, row in batch.runs:
            pieces.setdefault(run.chunk, []).append((run, row))
        builder = _Builder(len(batch.positions), page_size, taps - 1)
        for chunk in pieces.values():
            builder.add(chunk, chunk[0][0].request.pages[group])
        return builder.plan()

    def convolve(self, tail: torch.Tensor, k: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """The convolved keys of raw k [T, Hkv, d]; leaves in the page field `tail` what follows
        needs.
        """
        out = key_conv(k, tail[self.loads], self.before, weight)
        tail[self.stores] = k[self.rows]
        return out


class _Builder:
    """Collects the chunks of a batch."""

    def __init__(self, rows: int, page_size: int, reach: int) -> None:
        self._page_size, self._reach = page_size, reach
        self._before = torch.full((rows, reach), -1)
        self._loads: list[tuple[int, int]] = []
        self._stores: list[tuple[int, int]] = []
        self._rows: list[int] = []

    def add(self, runs: Sequence[tuple[Run, int]], pages: Sequence[int]) -> None:
        """A chunk's runs by ascending positions, each with its first row; its request's pages."""
        start, stop = runs[0][0].start, runs[-1][0].stop
        rows = [row + i for run, row in runs for i in range(run.stop - run.start)]
        known = [self._load(pages, at) for at in range(start - self._reach, start)]
        if self._reach:
            # Entry i of a window that ends before a row lies reach - i tokens before it.
            windows = torch.tensor(known + rows).unfold(0, self._reach, 1)
            self._before[rows] = windows[: len(rows)].flip(1)
        self._store(pages, start, stop, rows)

    def _load(self, pages: Sequence[int], at: int) -> int:
        """The code of the raw key at a position of an earlier step."""
        if at < 0:
            return -1
        self._loads.append((pages[at // self._page_size], at % self._reach))
        return -1 - len(self._loads)

    def _store(self, pages: Sequence[int], start: int, stop: int, rows: Sequence[int]) -> None:
        """The last tokens of the chunk in each of its pages."""
        for page in range(start // self._page_size, (stop - 1) // self._page_size + 1):
            end = min((page + 1) * self._page_size, stop)
            for at in range(max(start, page * self._page_size, end - self._reach), end):
                self._stores.append((pages[page], at % self._reach))
                self._rows.append(rows[at - start])

    def plan(self) -> KeyTails:
        """The finished plan."""
        return KeyTails(
            self._before,
            _places(self._loads),
            _places(self._stores),
            torch.tensor(self._rows, dtype=torch.int64),
        )


def _places(found: Sequence[tuple[int, int]]) -> Places:
    pages, slots = torch.tensor(found, dtype=torch.int64).view(-1, 2).unbind(1)
    return pages, slots
