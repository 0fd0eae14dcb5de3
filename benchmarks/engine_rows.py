"""Measures our engine and its peer by context length, in turn, beside the memory floor.

Where the peer is too slow, its times are extrapolated from shorter contexts of the same run, and
the table says so.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median

import torch

from ..engine.checkpoint.config_json import ModelConfig
from .engine_estimate import Curve, seconds_of, spare_rounds
from .engine_subjects import DENSE, OURS, Subject, Trial
from .goals import Goal
from .llama_checkpoint import kv_bytes, weight_bytes
from .report import Table
from .roofline import Ceiling
from .timing import Figure, ratio, seconds

GOAL_CONTEXT, LONG_CONTEXT = 16384, 65536


@dataclass(frozen=True)
class EngineRow:
    """One implementation at one context; rates in tokens per second, None: not measured.

    prefill_ratio, decode_ratio: times as fast as the peer (only ours has them). over_floor: the
    time of a decode step over the time in which its bytes can be read. same_tokens: how many
    greedy tokens agree with the peer's before the first that differs. prefill_dense, decode_dense:
    times as fast as our own dense engine. extrapolated: the contexts that the peer's times follow
    from, where it was not measured.
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
    prefill_dense: float | None = None
    decode_dense: float | None = None
    extrapolated: tuple[int, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What to measure: contexts in tokens, decode steps, rounds; the peer stays below a context.

    peer_from: contexts at which the peer alone is timed, to extrapolate from. minutes: rounds after
    the first are left out where all of them would take longer; None: none are.
    """

    contexts: tuple[int, ...]
    steps: int
    repeats: int
    peer_max_context: int
    peer_from: tuple[int, ...] = ()
    minutes: float | None = None


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
    plan: Plan,
    ours: Sequence[Subject],
    peer: Subject | None,
    floor: Floor,
    progress: Callable[[str], None],
) -> list[EngineRow]:
    """Rows of every context: ours, then the peer's."""
    for subject in (*ours, *[peer] * (peer is not None)):
        # First calls are slow.
        subject.run(prompt(floor.config, min(64, plan.contexts[0]), 0), 2)
    gc.freeze()  # as a server does: a collection would look at every module that was imported
    curve = _curve(plan, peer, floor, progress) if peer is not None and plan.peer_from else None
    rows: list[EngineRow] = []
    for context in plan.contexts:
        measured = peer if context <= plan.peer_max_context else None
        runs = [*ours, *[measured] * (measured is not None)]
        trials, streams = _rounds(plan, context, runs, floor, progress)
        if peer is not None and measured is None and curve is not None:
            known = len(next(iter(trials.values())))
            trials[peer.name] = [curve.trial(context)] * known
        rows += _rows(plan, context, ours, peer, trials, streams, floor)
        if peer is not None and measured is None and curve is not None:
            rows[-1] = replace(rows[-1], extrapolated=plan.peer_from)
    return rows


def _curve(plan: Plan, peer: Subject, floor: Floor, progress: Callable[[str], None]) -> Curve:
    """The peer at the contexts to extrapolate from, the best of two rounds each."""
    found = {}
    for context in plan.peer_from:
        progress(f"context {context}, to extrapolate from: {peer.name}")
        some = [peer.run(prompt(floor.config, context, i), plan.steps) for i in range(2)]
        found[context] = Trial(min(t.prefill_s for t in some), min(t.step_s for t in some), ())
    return Curve(found)


def _rounds(
    plan: Plan,
    context: int,
    runs: Sequence[Subject],
    floor: Floor,
    progress: Callable[[str], None],
) -> tuple[dict[str, list[Trial]], list[float]]:
    """Trials of each subject by name, and seconds of the streaming read in each round."""
    trials: dict[str, list[Trial]] = {subject.name: [] for subject in runs}
    streams: list[float] = []
    rounds = plan.repeats
    if plan.minutes is not None:
        for subject in runs:
            guess = seconds_of(subject, lambda n: prompt(floor.config, n, 0), context, plan.steps)
            progress(f"context {context}: a round of {subject.name} may take {guess:.0f} s")
    for index in range(plan.repeats):
        if index >= rounds:
            break
        ids, begun = prompt(floor.config, context, index), time.perf_counter()
        for subject in runs:
            progress(f"context {context}, round {index + 1} of {rounds}: {subject.name}")
            trials[subject.name].append(subject.run(ids, plan.steps))
        streams.append(seconds(floor.stream.run, 2))
        if index == 0 and plan.minutes is not None:
            took = time.perf_counter() - begun
            rounds = min(rounds, 1 + spare_rounds(plan.minutes / len(plan.contexts), took))
            progress(f"context {context}: a round took {took:.0f} s, {rounds} of them are run")
    return trials, streams


def _rows(
    plan: Plan,
    context: int,
    ours: Sequence[Subject],
    peer: Subject | None,
    trials: dict[str, list[Trial]],
    streams: Sequence[float],
    floor: Floor,
) -> list[EngineRow]:
    middle = context + plan.steps // 2
    floors = [floor.step_seconds(middle, each) for each in streams]
    compared = trials.get(peer.name) if peer else None
    dense = trials.get(DENSE)
    rows = [
        _row(
            context,
            each.name,
            trials[each.name],
            compared,
            floors,
            None if each.name == DENSE else dense,
        )
        for each in ours
    ]
    if peer is not None:
        rows.append(_row(context, peer.name, trials.get(peer.name, []), None, floors, None))
    return rows


def _row(
    context: int,
    name: str,
    trials: Sequence[Trial],
    peer: Sequence[Trial] | None,
    floors: Sequence[float],
    dense: Sequence[Trial] | None,
) -> EngineRow:
    if not trials:
        return EngineRow(context, name, False, None, None)
    prefill, step = [t.prefill_s for t in trials], [t.step_s for t in trials]
    # Extrapolated times have no tokens.
    pairs = [(a, b) for a, b in zip(trials, peer or [], strict=False) if b.tokens]
    same = [_common(a.tokens, b.tokens) for a, b in pairs]
    return EngineRow(
        context=context,
        implementation=name,
        ours=name in (OURS, DENSE),
        prefill=Figure.of([context / each for each in prefill]),
        decode=Figure.of([1 / each for each in step]),
        prefill_ratio=ratio([t.prefill_s for t in peer], prefill).value if peer else None,
        decode_ratio=ratio([t.step_s for t in peer], step).value if peer else None,
        over_floor=ratio(step, floors).value,
        same_tokens=int(median(same)) if same else None,
        prefill_dense=ratio([t.prefill_s for t in dense], prefill).value if dense else None,
        decode_dense=ratio([t.step_s for t in dense], step).value if dense else None,
    )


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    differ = (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    return next(differ, min(len(a), len(b)))


def prompt(config: ModelConfig, length: int, seed: int) -> list[int]:
    """Random token ids."""
    generator = torch.Generator().manual_seed(seed)
    return [int(i) for i in torch.randint(0, config.vocab_size, (length,), generator=generator)]


def goals(rows: Sequence[EngineRow], standard: bool, sparse: bool = False) -> list[Goal]:
    """The issues' goals at 16K with dense attention and at 64K beside it: of the standard shape."""

    def found(context: int) -> EngineRow:
        some = [
            row
            for row in rows
            if standard and row.implementation == OURS and row.context == context
        ]
        return some[0] if some else EngineRow(context, OURS, True, None, None)

    if sparse:
        row = found(LONG_CONTEXT)
        return [
            Goal("sparse prefill at 64K, times our dense engine", 5.0, row.prefill_dense),
            Goal("sparse prefill at 64K, times transformers", 10.0, row.prefill_ratio),
            Goal("sparse decode at 64K, times our dense engine", 4.0, row.decode_dense),
            Goal("sparse decode at 64K, times transformers", 15.0, row.decode_ratio),
        ]
    row = found(GOAL_CONTEXT)
    return [
        Goal("prefill at 16K, times transformers", 1.5, row.prefill_ratio),
        Goal("decode at 16K, times transformers", 3.0, row.decode_ratio),
        Goal("decode step at 16K, over the memory floor", 1.5, row.over_floor, at_least=False),
    ]


def table(rows: Sequence[EngineRow], plan: Plan, floor: Floor, stream_rate: float) -> Table:
    """Tokens per second by context."""
    beside = any(row.prefill_dense is not None for row in rows)
    columns = "context,implementation,prefill tok/s,spread,x peer,decode tok/s,spread,x peer"
    columns += ",over floor,same tokens" + ",prefill x dense,decode x dense" * beside
    cells = []
    for row in rows:
        cells.append(_cells(row, plan.steps + 1, beside))
        if row.ours and row.implementation == OURS:
            least = stream_rate / floor.step_bytes(row.context + plan.steps // 2)
            empty = [""] * (4 + 2 * beside)
            cells.append([str(row.context), "memory floor", "", "", "", f"{least:.1f}", *empty])
    notes = [
        "x peer: times as fast as transformers in the same round. over floor: a decode step's time",
        "over the time in which its weights and K/V can be read (a streaming read in that round);",
        "sparse attention reads less. same tokens: greedy tokens that agree with transformers",
        "before the first that differs.",
    ]
    if any(row.extrapolated for row in rows):
        lengths = ", ".join(map(str, plan.peer_from))
        notes.append(
            f"extrapolated: transformers was timed at {lengths} tokens in this run; prefill as "
            "a T + b T^2, a decode step as a + b T."
        )
    return Table("Engine, one sequence", columns.split(","), cells, notes)


def _cells(row: EngineRow, tokens: int, beside: bool) -> list[str]:
    return [
        str(row.context),
        row.implementation + " (extrapolated)" * bool(row.extrapolated),
        *_rate(row.prefill),
        _times(row.prefill_ratio),
        *_rate(row.decode),
        _times(row.decode_ratio),
        _times(row.over_floor),
        "" if row.same_tokens is None else f"{row.same_tokens} of {tokens}",
        *[_times(each) for each in (row.prefill_dense, row.decode_dense)] * beside,
    ]


def _rate(figure: Figure | None) -> tuple[str, str]:
    if figure is None:
        return "not measured", ""
    return f"{figure.value:.4g}", f"{100 * figure.spread:.0f} %"


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
