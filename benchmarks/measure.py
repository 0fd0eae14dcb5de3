"""Measures one kernel case: ours, the fastest peer and the ceiling in the same rounds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from .cases import Case, Problem, disagreement
from .roofline import Ceiling, Ceilings, Work, dtype_name
from .timing import Figure, Samples, contenders, fastest, interleave, ratio


@dataclass(frozen=True)
class Row:
    """One implementation in one case. Times in seconds a call; spreads are shares of the median.

    share: of the ceiling named by `bound`, None where none applies. ratio: how many times faster
    than the fastest peer (only ours has one). wrong: the error against a peer it disagrees with.
    """

    op: str
    name: str
    params: dict[str, int]
    shape: str
    dtype: str
    implementation: str
    ours: bool
    seconds: float
    spread: float
    gbps: float
    tflops: float
    bound: str
    share: float | None
    peer: str
    ratio: float | None
    ratio_spread: float | None
    wrong: str = ""


def measure(case: Case, ceilings: Ceilings, repeats: int) -> list[Row]:
    """Our row and the fastest peer's."""
    torch.manual_seed(0)
    problem = case.build()
    wrong = disagreement(problem, case.dtype)
    peers = contenders({peer.name: peer.run for peer in problem.peers})
    ceiling = ceilings.of(problem.bound, case.dtype)
    runs = {problem.ours.name: problem.ours.run, **peers}
    if ceiling is not None:
        runs[ceiling.name] = ceiling.run
    samples = interleave(runs, repeats)
    samples[problem.ours.name] = [
        seconds / problem.ours.calls for seconds in samples[problem.ours.name]
    ]
    best = fastest({name: samples[name] for name in peers})
    faster = ratio(samples[best], samples[problem.ours.name])
    note = "; ".join(f"{name}: error {gap:.2g}" for name, gap in wrong.items())
    return [
        _row(case, problem, problem.ours.name, samples, ceiling, faster, note),
        _row(case, problem, best, samples, ceiling, None, ""),
    ]


def _row(
    case: Case,
    problem: Problem,
    name: str,
    samples: Samples,
    ceiling: Ceiling | None,
    faster: Figure | None,
    wrong: str,
) -> Row:
    time, work = Figure.of(samples[name]), problem.work
    return Row(
        op=case.op,
        name=case.name,
        params=dict(case.params),
        shape=case.shape,
        dtype=dtype_name(case.dtype),
        implementation=name,
        ours=name == problem.ours.name,
        seconds=time.value,
        spread=time.spread,
        gbps=work.gbps(time.value),
        tflops=work.tflops(time.value),
        bound=problem.bound if ceiling else "",
        share=_share(work, ceiling, samples, name),
        peer=case.peer,
        ratio=faster.value if faster else None,
        ratio_spread=faster.spread if faster else None,
        wrong=wrong,
    )


def _share(work: Work, ceiling: Ceiling | None, samples: Samples, name: str) -> float | None:
    return None if ceiling is None else ceiling.share(work, samples[name], samples[ceiling.name])


def measure_all(
    cases: Iterable[Case], ceilings: Ceilings, repeats: int, progress: Callable[[str], None]
) -> list[Row]:
    """The rows of all cases; `progress` is told each case before it runs."""
    rows: list[Row] = []
    for case in cases:
        progress(case.label)
        rows += measure(case, ceilings, repeats)
    return rows
