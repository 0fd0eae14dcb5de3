"""Measures the attention methods beside our own dense attention, all in the same rounds."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from ..engine.errors import SaccadeError
from ..kernels import native
from . import method_cases
from .cases import Sizes
from .method_cases import DENSE, PHASES, MethodCase, Problem
from .method_layers import DIM, HEADS, KV_HEADS, MODEL_LAYERS, Subject
from .op_times import WITHIN, PlayedTimes, op_times
from .report import SHARED, Table, duration
from .timing import Figure, Rotation, Samples, interleave, ratio

# Whatever else a method does counts as choosing: its own code between the ops, too. (Products over
# heads take queries to latents, and what was attended to back.)
_ATTENDING = ("attend", "attend_turns", "merge", "gated_sum", "linear_heads", WITHIN)
SPLIT_TIME = 0.1  # seconds


@dataclass(frozen=True)
class MethodRow:
    """A method in one phase: seconds a call, and how many times as fast as dense in its rounds.

    keys: the share of the keys that it reads. choosing: of its time, what is not attention over
    them: summaries, scores, selection and the code between.
    """

    spec: str
    phase: str
    tokens: int
    seconds: float
    spread: float
    ratio: float
    ratio_spread: float
    keys: float
    choosing: float


def choosing(subjects: Sequence[Subject], seconds: float, plays: bool) -> float:
    """The share of a method's time that is not attention itself, over calls of about SPLIT_TIME.

    plays: as what is recorded, if it can be. Not measured with the samples: looking into a call
    costs more than some calls take.
    """
    calls = max(1, round(SPLIT_TIME / seconds))
    spent, total = _played_times(subjects, calls) if plays else (Counter(), 0.0)
    if not total:
        spent, total = _called_times(subjects, calls)
    return max(0.0, 1 - sum(spent[name] for name in _ATTENDING) / total)


def _called_times(subjects: Sequence[Subject], calls: int) -> tuple[Counter[str], float]:
    """Seconds by op and in all, the subjects in turn."""
    run = Rotation(subjects)
    run()
    start = time.perf_counter()
    with op_times() as spent:
        for _ in range(calls):
            run()
    return spent, time.perf_counter() - start - spent[WITHIN]


def _played_times(subjects: Sequence[Subject], calls: int) -> tuple[Counter[str], float]:
    """The same of what is played; 0 seconds where it cannot be."""
    spent: Counter[str] = Counter()
    if native.kernels() is None:
        return spent, 0.0
    tapes = []
    for subject in subjects:
        subject.prepare()
        tapes.append(PlayedTimes(subject.compute))
        if tapes[-1].refusal:
            return spent, 0.0
    run = Rotation([partial(tape.play, spent) for tape in tapes])
    return spent, sum(run() for _ in range(calls))


def measure(
    sizes: Sizes, repeats: int, progress: Callable[[str], None], phases: Iterable[str] = PHASES
) -> list[MethodRow]:
    """Rows of every method in each phase, dense first; SaccadeError when one gives NaN.

    As in the engine, torch's own threads sleep: what a method does in torch is little.
    """
    with native.single_threaded_torch():
        return [row for phase in phases for row in _phase(phase, sizes, repeats, progress)]


def _phase(
    phase: str, sizes: Sizes, repeats: int, progress: Callable[[str], None]
) -> list[MethodRow]:
    chosen = [MethodCase(DENSE, phase), *method_cases.cases(phase)]
    progress(f"methods, {phase}: {', '.join(case.spec for case in chosen)}")
    torch.manual_seed(0)
    problem = method_cases.PHASES[phase](sizes, chosen)
    for spec, run in problem.runs.items():
        if not all(run().isfinite().all() for _ in range(2)):
            raise SaccadeError(f"{spec} gives NaN or infinity in {phase}")
    samples = interleave(problem.runs, repeats)
    return [_row(case, problem, samples) for case in chosen]


def _row(case: MethodCase, problem: Problem, samples: Samples) -> MethodRow:
    own = [seconds / problem.calls[case.spec] for seconds in samples[case.spec]]
    dense = [seconds / problem.calls[DENSE] for seconds in samples[DENSE]]
    time_, faster = Figure.of(own), ratio(dense, own)
    return MethodRow(
        spec=case.spec,
        phase=case.phase,
        tokens=problem.tokens,
        seconds=time_.value,
        spread=time_.spread,
        ratio=faster.value,
        ratio_spread=faster.spread,
        keys=problem.share(case.spec),
        choosing=choosing(
            problem.subjects[case.spec], case.layers * time_.value, case.phase == "decode"
        ),
    )


def table(rows: Sequence[MethodRow]) -> Table:
    """The methods with what they read and how fast they are."""
    columns = "phase,tokens,method,time,spread,keys read,x dense,keys allow,choosing"
    notes = [
        SHARED,
        f"One layer, bf16, {HEADS} query and {KV_HEADS} KV heads of {DIM}, random keys (so that "
        "neighbours agree in nothing), batch 1.",
        "x dense: times as fast as our own dense attention. keys allow: dense keys over keys read. "
        "choosing: time that is not attention (summaries, scores, selection, glue). decode: played "
        "as in decode steps of the engine, but adaptive and mosa, which it calls from Python.",
        f"lessismore, tidal: the mean of {MODEL_LAYERS} layers, of which two are dense and two "
        f"choose. mosa: {HEADS} heads that choose, each with a K and V of its own, scores evenly "
        f"spread. asa: a global layer of {KV_HEADS} latents a token. adaptive: tau=0.01 keeps "
        "every head local here, tau=1.0 none.",
    ]
    return Table("Methods beside dense", columns.split(","), [_cells(row) for row in rows], notes)


def _cells(row: MethodRow) -> list[str]:
    return [
        row.phase,
        str(row.tokens),
        row.spec,
        duration(row.seconds),
        f"{100 * row.spread:.0f} %",
        f"{100 * row.keys:.3g} %",
        f"{row.ratio:.2f}",
        f"{1 / row.keys:.1f}",
        f"{100 * row.choosing:.0f} %",
    ]
