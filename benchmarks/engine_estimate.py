"""Times at contexts that nobody waits for, from shorter ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .engine_subjects import Subject, Trial

_PROBES = 512, 2048  # tokens: a look at a subject before it is measured


@dataclass(frozen=True)
class Curve:
    """Trials by context. Prefill is taken as a T + b T^2 (linear layers and attention), a decode
    step as a + b T (weights and K/V), through the two longest contexts.
    """

    trials: Mapping[int, Trial]

    def trial(self, context: int) -> Trial:
        """The times at another context; without tokens."""
        short, long = sorted(self.trials)[-2:]
        one, two = self.trials[short], self.trials[long]
        linear, square = _line(short, one.prefill_s / short, long, two.prefill_s / long)
        base, slope = _line(short, one.step_s, long, two.step_s)
        prefill = context * (linear + square * context)
        return Trial(prefill, base + slope * context, ())


def _line(x: int, y: float, other_x: int, other_y: float) -> tuple[float, float]:
    """Intercept and slope through two points; a slope that noise makes negative counts as none."""
    slope = max(0.0, (other_y - y) / (other_x - x))
    return other_y - slope * other_x, slope


def seconds_of(
    subject: Subject, prompt: Callable[[int], Sequence[int]], context: int, steps: int
) -> float:
    """About how long a round of this subject takes: by two short prompts, as Curve has it."""
    probes = [n for n in _PROBES if n < context] or [context]
    if len(probes) == 1:
        trial = subject.run(prompt(probes[0]), 1)
        scale = context / probes[0]
        return scale * (trial.prefill_s + steps * trial.step_s)
    guess = Curve({n: subject.run(prompt(n), 1) for n in probes}).trial(context)
    return guess.prefill_s + steps * guess.step_s


def spare_rounds(minutes: float, round_s: float) -> int:
    """How many more rounds fit into this time after a first one."""
    return max(0, int(60 * minutes / max(round_s, 1e-9)) - 1)
