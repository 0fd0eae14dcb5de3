"""Timing on a machine that others may be using: everything that is compared runs in turn.

A sample of each candidate is taken in every round (A B C A B C ...), so that a slow minute of the
machine hits all of them; ratios are formed inside a round and their median is reported.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

Run = Callable[[], Any]
Samples = dict[str, list[float]]

# A sample lasts at least this long (seconds): short calls are repeated inside it.
MIN_SAMPLE = 0.004
# OpenMP workers go on polling for some milliseconds after their last loop; on few cores they would
# take time from the next candidate.
SETTLE = 0.01


@dataclass(frozen=True)
class Figure:
    """A median and its spread: half the distance of the quartiles, as a share of the median."""

    value: float
    spread: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure:
        """The figure of at least one value."""
        middle = median(values)
        if len(values) < 2 or middle == 0:
            return cls(middle, 0.0)
        low, _, high = quantiles(values, n=4, method="inclusive")
        return cls(middle, (high - low) / 2 / abs(middle))


class Rotation:
    """Calls that take turns, so that each finds its own data out of the caches, as layers do."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._runs = runs
        self._next = 0

    def __call__(self) -> Any:
        run = self._runs[self._next]
        self._next = (self._next + 1) % len(self._runs)
        return run()


def seconds(run: Run, calls: int = 1) -> float:
    """Mean time of a call over `calls` calls."""
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) / calls


def calls_per_sample(run: Run, least: float = MIN_SAMPLE) -> int:
    """How many calls make a sample of at least `least` seconds; warms `run` up.

    The shorter of two calls counts, so that one interruption does not make all samples too short.
    """
    run()
    call = seconds(run)
    if call < least:
        call = min(call, seconds(run))
    return max(1, math.ceil(least / max(call, 1e-7)))


def interleave(runs: Mapping[str, Run], repeats: int, least: float = MIN_SAMPLE) -> Samples:
    """`repeats` samples (seconds a call) of each run, taken in turn."""
    calls = {name: calls_per_sample(run, least) for name, run in runs.items()}
    samples: Samples = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            time.sleep(SETTLE)
            if calls[name] > 1:
                run()  # the candidate before it has the caches
            samples[name].append(seconds(run, calls[name]))
    return samples


def ratio(over: Sequence[float], under: Sequence[float]) -> Figure:
    """The median of over[i] / under[i]."""
    return Figure.of([a / b for a, b in zip(over, under, strict=True)])


def contenders(runs: Mapping[str, Run], within: float = 1.5) -> dict[str, Run]:
    """The runs whose better time of two is within this factor of the best: on a noisy machine the
    winner of a short heat may not be the fastest in the long run."""
    if len(runs) == 1:
        return dict(runs)
    best = {name: min(times) for name, times in interleave(runs, 2).items()}
    limit = within * min(best.values())
    return {name: run for name, run in runs.items() if best[name] <= limit}


def fastest(samples: Samples) -> str:
    """The name with the smallest median."""
    return min(samples, key=lambda name: median(samples[name]))
