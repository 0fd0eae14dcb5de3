"""What layers carry from token to token: the states of recurrent layers, and the last inputs of
convolutions (of a recurrent layer, or of keys). Where a step finds them, and where it leaves them.

A page keeps the state behind its latest token: a full page that of its end, for whoever continues
after it (a prefix hit, a fork, a request that was preempted), a page that is being filled that of
its owner's last token. So a step needs the page of the last token alone, and a prefix can be
continued where the page before it is still there. Who shared a page that is not full would find its
owner's state, so requests fork at the beginning of a page (`SchedulerLimits.fork_align`).

Every page has room for two states, each with the number of tokens behind it: a step reads one and
writes the other, so that a step that broke can be run again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from ..kernels.gated_delta import Walk
from ..kernels.key_conv import key_conv
from .attention.base import TOKENS
from .batch import Batch, Run

STATE = "recurrent_state"
SLOTS = 2


@dataclass(frozen=True)
class Slots:
    """Which of the states, counted over all pages, a layer reads and writes in a step."""

    load: torch.Tensor  # int64 [S], -1: none
    store: torch.Tensor  # int64 [N]


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
    """One step's plan for those layers of a layer group; S chunks, N states to keep."""

    cu: torch.Tensor  # int64 [S + 1]
    rows: torch.Tensor  # int64 [T], chunk after chunk, by ascending positions
    start: torch.Tensor  # int64 [S]: tokens before each chunk
    page: torch.Tensor  # int64 [S]: page of the last of them, -1: there is none
    at: torch.Tensor  # int64 [N]: behind which of `rows` a state is kept
    to: torch.Tensor  # int64 [N]: in which page
    tokens: torch.Tensor  # int64 [N]: how many tokens lie behind it
    reads: torch.Tensor  # int64 [N]: the chunk whose first state lies in that page too, or -1
    taps: dict[tuple[int, int], Tap] = field(default_factory=dict)

    @staticmethod
    def of(batch: Batch, group: int, page_size: int) -> Snapshots:
        """The plan for a batch; in pages of layer group `group`."""
        pieces: dict[int, list[tuple[Run, int]]] = {}
        for run, row in batch.runs:
            pieces.setdefault(run.chunk, []).append((run, row))
        rows: list[int] = []
        cu, start, page = [0], [], []
        kept: list[tuple[int, int, int, int]] = []
        for number, runs in enumerate(pieces.values()):
            first, stop = runs[0][0].start, runs[-1][0].stop
            pages = runs[0][0].request.pages[group]
            start.append(first)
            page.append(pages[(first - 1) // page_size] if first else -1)
            for index in range(first // page_size, (stop - 1) // page_size + 1):
                end = min((index + 1) * page_size, stop)
                same = first > 0 and (first - 1) // page_size == index
                kept.append(
                    (len(rows) + end - first - 1, pages[index], end, number if same else -1)
                )
            rows += [row + i for run, row in runs for i in range(run.stop - run.start)]
            cu.append(len(rows))
        at, to, tokens, reads = torch.tensor(kept, dtype=torch.int64).view(-1, 4).unbind(1)
        return Snapshots(
            torch.tensor(cu),
            torch.tensor(rows),
            torch.tensor(start),
            torch.tensor(page),
            at,
            to,
            tokens,
            reads,
        )

    def slots(self, fields: Mapping[str, torch.Tensor]) -> Slots:
        """Where a layer's states are and go. RuntimeError where there is none to go on with."""
        known = fields[TOKENS][self.page.clamp(min=0)] == self.start[:, None]
        if not bool((known.any(1) | (self.page < 0)).all()):
            raise RuntimeError("a layer's state is not in the page of the last token")
        slot = known[:, 1].long()
        load = torch.where(self.page < 0, -1, self.page * SLOTS + slot)
        free = torch.where(self.reads < 0, 0, 1 - slot[self.reads.clamp(min=0)])
        return Slots(load, self.to * SLOTS + free)

    def walk(self, slots: Slots) -> Walk:
        """The order of the rows, for a layer's states."""
        store = torch.full_like(self.rows, -1)
        store[self.at] = slots.store
        return Walk(self.cu, self.rows, slots.load, store)

    def commit(self, fields: Mapping[str, torch.Tensor], slots: Slots) -> None:
        """Says of the states that they are there; of a page that is new, that nothing else is."""
        tokens = fields[TOKENS]
        tokens[self.to[self.reads < 0]] = 0
        tokens.view(-1)[slots.store] = self.tokens

    def convolve(
        self,
        tail: torch.Tensor,
        slots: Slots,
        x: torch.Tensor,
        weight: torch.Tensor,
        dilation: int = 1,
        residual: bool = False,
    ) -> torch.Tensor:
        """silu of the causal convolution of x [T, C] by weight [taps, C], each tap `dilation`
        tokens before the one after it, with `residual` added to x; its last inputs are kept in the
        page field `tail` [pages, 2, reach, C].
        """
        taps, reach = weight.shape[0], (weight.shape[0] - 1) * dilation
        kept = tail.flatten(0, 1)
        history = kept[slots.load.clamp(min=0)]
        history[slots.load < 0] = 0
        history = history.flatten(0, 1)
        if (taps, dilation) not in self.taps:
            self.taps[taps, dilation] = self._tap(taps, dilation)
        tap = self.taps[taps, dilation]
        out = key_conv(
            x[:, None], history[:, None], tap.before, weight[:, None].contiguous(), residual
        )
        if reach:
            kept[slots.store] = torch.where(tap.inside, x[tap.rows], history[tap.past])
        return out[:, 0]

    def _tap(self, taps: int, dilation: int) -> Tap:
        reach = (taps - 1) * dilation
        chunk = torch.repeat_interleave(torch.arange(len(self.start)), self.cu.diff())
        place = torch.arange(len(self.rows)) - self.cu[chunk]
        count = len(self.rows)

        def codes(at: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
            """The inputs `back` [n, m] tokens before the entries `at` [n] of `rows`."""
            source = place[at][:, None] - back
            rows = self.rows[(self.cu[chunk[at]][:, None] + source).clamp(min=0)]
            return torch.where(
                source >= 0, rows, count + chunk[at][:, None] * reach + reach + source
            )

        found = codes(torch.arange(count), torch.arange(1, taps)[None] * dilation)
        before = torch.empty_like(found)
        before[self.rows] = torch.where(found < count, found, count - 2 - found)
        kept = codes(self.at, torch.arange(reach - 1, -1, -1)[None])
        inside = kept < count
        return Tap(before, inside[..., None], kept.where(inside, 0), (kept - count).clamp(min=0))
