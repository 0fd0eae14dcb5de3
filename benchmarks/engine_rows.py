"""Measures our engine and its peer by context length, in turn, beside the memory floor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch

from ..engine.checkpoint.config_json import ModelConfig
from .engine_subjects import Subject, Trial
from .goals import Goal
from .llama_checkpoint import kv_bytes, weight_bytes
from .report import Table
from .roofline import Ceiling
from .timing import Figure, ratio, seconds

GOAL_CONTEXT = 16384


@dataclass(frozen=True)
class EngineRow:
    """One implementation at one context; rates in tokens per second, None: not measured.

    prefill_ratio, decode_ratio: times as fast as the peer (only ours has them). over_floor: the
    time of a decode step over the time in which its bytes can be read. same_tokens: how many
    greedy tokens agree with the peer's before the first that differs.
    """

    context: int
    implementation: str
    ours: bool
    prefill: Figure | None
    decode: Figure | None
    prefill_ratio: float | None = None
    decode_ratio: float | None = None
    over_floor: float | None = None
    same_tokens: int | None = None


@dataclass(frozen=True)
class Plan:
    """What to measure: contexts in tokens, decode steps, rounds; the peer stays below a context."""

    contexts: tuple[int, ...]
    steps: int
    repeats: int
    peer_max_context: int


@dataclass(frozen=True)
class Floor:
    """The bytes of a decode step, and a streaming read that says how long they take."""

    config: ModelConfig
    element: int
    stream: Ceiling

    def step_bytes(self, context: int) -> int:
        """Weights and K/V of one dense decode step."""
        return weight_bytes(self.config, self.element) + kv_bytes(
            self.config, context, self.element
        )

    def step_seconds(self, context: int, stream_s: float) -> float:
        """The least time of a step when the stream buffer took `stream_s` seconds."""
        return self.step_bytes(context) / self.stream.work.bytes * stream_s


def measure(
    plan: Plan, ours: Subject, peer: Subject | None, floor: Floor, progress: Callable[[str], None]
) -> list[EngineRow]:
    """Rows of every context: ours, then the peer's."""
    for subject in (ours, peer):
        if subject is not None:
            subject.run(
                prompt(floor.config, min(64, plan.contexts[0]), 0), 2
            )  # first calls are slow
    rows: list[EngineRow] = []
    for context in plan.contexts:
        rows += measure_context(plan, context, ours, peer, floor, progress)
    return rows


def measure_context(
    plan: Plan,
    context: int,
    ours: Subject,
    peer: Subject | None,
    floor: Floor,
    progress: Callable[[str], None],
) -> list[EngineRow]:
    """The rounds at one context."""
    runs = [ours] if peer is None or context > plan.peer_max_context else [ours, peer]
    trials: dict[str, list[Trial]] = {subject.name: [] for subject in runs}
    streams = []
    for index in range(plan.repeats):
        ids = prompt(floor.config, context, index)
        for subject in runs:
            progress(f"context {context}, round {index + 1} of {plan.repeats}: {subject.name}")
            trials[subject.name].append(subject.run(ids, plan.steps))
        streams.append(seconds(floor.stream.run, 2))
    middle = context + plan.steps // 2
    floors = [floor.step_seconds(middle, each) for each in streams]
    compared = trials.get(peer.name) if peer else None
    rows = [_row(context, ours.name, trials[ours.name], compared, floors)]
    if peer is not None:
        rows.append(_row(context, peer.name, trials.get(peer.name, []), None, floors))
    return rows


def _row(
    context: int,
    name: str,
    trials: Sequence[Trial],
    peer: Sequence[Trial] | None,
    floors: Sequence[float],
) -> EngineRow:
    if not trials:
        return EngineRow(context, name, False, None, None)
    prefill, step = [t.prefill_s for t in trials], [t.step_s for t in trials]
    same = [_common(a.tokens, b.tokens) for a, b in zip(trials, peer or [], strict=False)]
    return EngineRow(
        context=context,
        implementation=name,
        ours=name == "saccade",
        prefill=Figure.of([context / each for each in prefill]),
        decode=Figure.of([1 / each for each in step]),
        prefill_ratio=ratio([t.prefill_s for t in peer], prefill).value if peer else None,
        decode_ratio=ratio([t.step_s for t in peer], step).value if peer else None,
        over_floor=ratio(step, floors).value,
        same_tokens=int(median(same)) if same else None,
    )


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    differ = (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    return next(differ, min(len(a), len(b)))


def prompt(config: ModelConfig, length: int, seed: int) -> list[int]:
    """Random token ids."""
    generator = torch.Generator().manual_seed(seed)
    return [int(i) for i in torch.randint(0, config.vocab_size, (length,), generator=generator)]


def goals(rows: Sequence[EngineRow], standard: bool) -> list[Goal]:
    """The issue's goals at 16K; only the standard shape with dense attention can meet them."""
    found = [row for row in rows if standard and row.ours and row.context == GOAL_CONTEXT]
    row = found[0] if found else EngineRow(GOAL_CONTEXT, "saccade", True, None, None)
    return [
        Goal("prefill at 16K, times transformers", 1.5, row.prefill_ratio),
        Goal("decode at 16K, times transformers", 3.0, row.decode_ratio),
        Goal("decode step at 16K, over the memory floor", 1.5, row.over_floor, at_least=False),
    ]


def table(rows: Sequence[EngineRow], plan: Plan, floor: Floor, stream_rate: float) -> Table:
    """Tokens per second by context."""
    columns = "context,implementation,prefill tok/s,spread,x peer,decode tok/s,spread,x peer"
    columns += ",over floor,same tokens"
    cells = []
    for row in rows:
        cells.append(_cells(row, plan.steps + 1))
        if row.ours:
            least = stream_rate / floor.step_bytes(row.context + plan.steps // 2)
            cells.append([str(row.context), "memory floor", "", "", "", f"{least:.1f}", *[""] * 4])
    notes = [
        "x peer: times as fast as transformers in the same round. over floor: a decode step's time",
        "over the time in which its weights and K/V can be read (a streaming read in that round).",
        "same tokens: greedy tokens that agree with transformers before the first that differs.",
    ]
    return Table("Engine, one sequence", columns.split(","), cells, notes)


def _cells(row: EngineRow, tokens: int) -> list[str]:
    return [
        str(row.context),
        row.implementation,
        *_rate(row.prefill),
        _times(row.prefill_ratio),
        *_rate(row.decode),
        _times(row.decode_ratio),
        _times(row.over_floor),
        "" if row.same_tokens is None else f"{row.same_tokens} of {tokens}",
    ]


def _rate(figure: Figure | None) -> tuple[str, str]:
    if figure is None:
        return "not measured", ""
    return f"{figure.value:.4g}", f"{100 * figure.spread:.0f} %"


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
