"""What layers carry from token to token: the states of recurrent layers, and the last inputs of
convolutions (of a recurrent layer, or of keys). Where a step finds them, and where it leaves them.

A page keeps the state behind its latest token: a full page that of its end, for whoever continues
after it (a prefix hit, a fork, a request that was preempted), a page that is being filled that of
its owner's last token. So a step needs the page of the last token alone, and a prefix can be
continued where the page before it is still there. Who shared a page that is not full would find its
owner's state, so requests fork at the beginning of a page (`SchedulerLimits.fork_align`).

Every page has room for two states: a step reads one and writes the other, so that a step that broke
can be run again. The host knows how many tokens lie behind each (`States`), in all layers of a
group alike, and chooses before the step; so the step itself asks for nothing, and on a GPU it is a
graph like any other (see `graphs.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..kernels.gated_delta import Walk
from ..kernels.key_conv import key_conv
from .attention.base import LayerShape
from .batch import Batch, Longs, Run

SLOTS = 2


class States:
    """Which states the pages of one layer group hold, in whichever of its layers carry any."""

    def __init__(self, pages: int, shapes: Sequence[LayerShape]) -> None:
        """shapes: of these layers."""
        self.convolutions = sorted({each for shape in shapes for each in shape.convolutions})
        # [pages, 2]: how many tokens lie behind each state, 0: it is none.
        self._tokens = np.zeros((pages, SLOTS), np.int64)

    @property
    def count(self) -> int:
        """All places for states."""
        return self._tokens.size

    def copy(self, source: Sequence[int], target: Sequence[int]) -> None:
        """Pages were copied."""
        self._tokens[np.array(target)] = self._tokens[np.array(source)]

    def find(self, page: Longs, tokens: Longs) -> Longs:
        """The slots [S] of the states behind so many tokens in these pages, 0 where the page is -1.
        RuntimeError where there is none to go on with.
        """
        known = self._tokens[page] == tokens[:, None]
        if not (known.any(1) | (page < 0)).all():
            raise RuntimeError("a layer's state is not in the page of the last token")
        return np.where(page < 0, 0, known[:, 1]).astype(np.int64)

    def claim(self, page: Longs, slot: Longs, new: Longs) -> None:
        """These states are about to be overwritten; of pages that are `new`, there is none."""
        self._tokens[page, slot] = 0
        self._tokens[new] = 0

    def note(self, page: Longs, slot: Longs, tokens: Longs) -> None:
        """These states are there."""
        self._tokens[page, slot] = tokens


@dataclass(frozen=True)
class Left:
    """The states that a step leaves, N of them."""

    states: States
    page: Longs
    slot: Longs
    tokens: Longs

    def note(self) -> None:
        """The step is computed: they are there."""
        self.states.note(self.page, self.slot, self.tokens)


@dataclass(frozen=True)
class Tap:
    """How one convolution goes over the rows of a step; inputs of earlier steps are `history`, the
    `reach` last ones of every sequence.
    """

    before: torch.Tensor  # int64 [T, taps - 1], as `key_conv` takes it
    # What is kept behind a step, int64 [N, reach] each: rows where `inside`, else of history.
    inside: torch.Tensor  # bool [N, reach, 1]
    rows: torch.Tensor
    past: torch.Tensor


@dataclass(frozen=True)
class Snapshots:
    """One step's plan for those layers of a layer group; S chunks, N states to keep. States are
    counted over all pages. All that a step depends on is in tensors, whose shapes in decode are
    those of any step of as many sequences.
    """

    walk: Walk  # chunk after chunk, by ascending positions
    load: torch.Tensor  # int64 [S]: what a chunk goes on with; any, where it is fresh
    fresh: torch.Tensor | None  # bool [S, 1, 1]: the chunk begins a text; None: no chunk does
    store: torch.Tensor  # int64 [N]
    taps: dict[tuple[int, int], Tap]  # by taps and dilation

    def convolve(
        self,
        tail: torch.Tensor,
        x: torch.Tensor,
        weight: torch.Tensor,
        dilation: int = 1,
        residual: bool = False,
    ) -> torch.Tensor:
        """silu of the causal convolution of x [T, C] by weight [taps, C], each tap `dilation`
        tokens before the one after it, with `residual` added to x; its last inputs are kept in the
        page field `tail` [pages, 2, reach, C].
        """
        kept, tap = tail.flatten(0, 1), self.taps[weight.shape[0], dilation]
        history = kept[self.load]
        if self.fresh is not None:
            history.masked_fill_(self.fresh, 0)
        history = history.flatten(0, 1)
        out = key_conv(
            x[:, None], history[:, None], tap.before, weight[:, None].contiguous(), residual
        )
        if tap.rows.shape[1]:
            kept[self.store] = torch.where(tap.inside, x[tap.rows], history[tap.past])
        return out[:, 0]


def plan_states(batch: Batch, group: int, page_size: int, states: States) -> tuple[Snapshots, Left]:
    """The plan for a batch in pages of layer group `group`, and what it leaves there."""
    pieces: dict[int, list[tuple[Run, int]]] = {}
    for run, row in batch.runs:
        pieces.setdefault(run.chunk, []).append((run, row))
    order: list[int] = []
    bounds, begins = [0], []
    kept: list[tuple[int, int, int, int]] = []
    for number, runs in enumerate(pieces.values()):
        first, stop = runs[0][0].start, runs[-1][0].stop
        pages = runs[0][0].request.pages[group]
        begins.append((pages[(first - 1) // page_size] if first else -1, first))
        for index in range(first // page_size, (stop - 1) // page_size + 1):
            end = min((index + 1) * page_size, stop)
            same = first > 0 and (first - 1) // page_size == index
            kept.append((len(order) + end - first - 1, pages[index], end, number if same else -1))
        order += [row + i for run, row in runs for i in range(run.stop - run.start)]
        bounds.append(len(order))
    cu, rows = np.array(bounds, np.int64), np.array(order, np.int64)
    page, start = np.array(begins, np.int64).T
    # Behind which of `rows` a state is kept, in which page, how many tokens lie behind it, and the
    # chunk whose first state lies in that page too, or -1.
    at, to, tokens, reads = np.array(kept, np.int64).T
    slot = states.find(page, start)
    free = np.where(reads < 0, 0, 1 - slot[reads])
    states.claim(to, free, to[reads < 0])
    load, store = np.where(page < 0, -1, page * SLOTS + slot), np.full_like(rows, -1)
    store[at] = to * SLOTS + free
    walk = Walk(*(torch.from_numpy(each) for each in (cu, rows, load, store)))
    walk.check(len(rows), states.count)
    fresh = torch.from_numpy(page < 0)[:, None, None] if (page < 0).any() else None
    taps = {each: _tap(*each, cu, rows, at) for each in states.convolutions}
    plan = Snapshots(
        walk, torch.from_numpy(load.clip(min=0)), fresh, torch.from_numpy(store[at]), taps
    )
    return plan, Left(states, to, free, tokens)


def _tap(taps: int, dilation: int, cu: Longs, rows: Longs, at: Longs) -> Tap:
    """at: behind which of `rows` inputs are kept."""
    reach, count = (taps - 1) * dilation, len(rows)
    chunk = np.repeat(np.arange(len(cu) - 1), np.diff(cu))
    place = np.arange(count) - cu[chunk]

    def codes(at: Longs, back: Longs) -> Longs:
        """The inputs `back` [m] tokens before the entries `at` [n] of `rows`."""
        source, own = place[at][:, None] - back, chunk[at][:, None]
        here = rows[(cu[own] + source).clip(min=0)]
        return np.where(source >= 0, here, count + own * reach + reach + source)

    found = codes(np.arange(count), np.arange(1, taps) * dilation)
    before = np.empty(found.shape, np.int64)
    before[rows] = np.where(found < count, found, count - 2 - found)
    kept = codes(at, np.arange(reach - 1, -1, -1))
    inside = kept < count
    return Tap(
        torch.from_numpy(before),
        torch.from_numpy(inside[..., None]),
        torch.from_numpy(np.where(inside, kept, 0)),
        torch.from_numpy((kept - count).clip(min=0)),
    )
