"""The project's speed goals beside the figures of a run. They are stated for a machine with AMX."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .measure import Row
from .method_cases import CASES, DENSE
from .method_layers import SHORT

if TYPE_CHECKING:
    from .method_rows import MethodRow

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Goal:
    """A target and what the run found; value None: this run did not measure it.

    at_least: whether more is better. digits and unit shape the text ("1.25x", "80 %").
    """

    name: str
    target: float
    value: float | None
    unit: str = "x"
    at_least: bool = True

    @property
    def met(self) -> bool | None:
        """Whether the figure reaches the target; None when it was not measured."""
        if self.value is None:
            return None
        return self.value >= self.target if self.at_least else self.value <= self.target

    def cells(self) -> list[str]:
        """Name, target, figure and verdict as text."""
        sign = ">=" if self.at_least else "<="
        if self.value is None:
            return [self.name, f"{sign} {self._text(self.target)}", NOT_MEASURED, "-"]
        verdict = "met" if self.met else "not met"
        return [self.name, f"{sign} {self._text(self.target)}", self._text(self.value), verdict]

    def _text(self, value: float) -> str:
        if self.unit == "%":
            return f"{100 * value:.0f} %"
        if self.unit == "MiB":
            return f"{value / 2**20:.2f} MiB"
        return f"{value:.2f}{self.unit}"


def kernel_goals(rows: Sequence[Row], scratch: dict[int, int | None], threads: int) -> list[Goal]:
    """The goals of the attention kernels, whatever of them `rows` and `scratch` hold."""
    goals = []
    for dtype, target in (("bf16", 1.25), ("fp32", 1.0)):
        for dim in (64, 128):
            found = _ours(rows, "prefill", dtype, T=8192, d=dim)
            name = f"causal prefill {dtype} T=8192 d={dim}, times torch SDPA"
            goals.append(Goal(name, target, _least(row.ratio for row in found)))
    found = _ours(rows, "prefill", "bf16", T=8192, d=128)
    name = "causal prefill bf16 T=8192 d=128, of the bf16 matrix product"
    goals.append(Goal(name, 0.5, _least(row.share for row in found)))
    for batch in (1, 8):
        found = _ours(rows, "decode", "bf16", T=32768, batch=batch)
        name = f"decode bf16 T=32768 batch {batch}, of the streaming read (lesser of d=64, 128)"
        goals.append(Goal(name, 0.8, _least(row.share for row in found), unit="%"))
    goals.append(scratch_goal(scratch, threads))
    return goals


def method_goals(rows: Sequence[MethodRow]) -> list[Goal]:
    """The goals of the sparse methods at 32K (prefill) and 64K (decode)."""
    goals = []
    for case in CASES:
        if case.goal is None:
            continue
        tokens = {"prefill": 32768, "decode": 65536}[case.phase]
        found = [row for row in rows if (row.spec, row.phase) == (case.spec, case.phase)]
        ratios = [row.ratio for row in found if 0 <= tokens - row.tokens <= SHORT]
        name = f"{case.spec}, {case.phase} at {tokens >> 10}K, times our dense"
        goals.append(Goal(name, case.goal, _least(ratios)))
    choosing = [row.choosing for row in rows if row.spec != DENSE]
    name = "summaries, scores and selection, of a method's time (the most of all)"
    goals.append(Goal(name, 0.25, max(choosing, default=None), "%", at_least=False))
    return goals


def scratch_goal(scratch: dict[int, int | None], threads: int) -> Goal:
    """Four times the tokens must not take more scratch: a quarter MiB a thread at most."""
    sizes = [size for _, size in sorted(scratch.items())]
    grown = None
    if len(sizes) == 2 and sizes[0] is not None and sizes[1] is not None:
        grown = float(max(0, sizes[1] - sizes[0]))
    lengths = " to ".join(f"T={tokens}" for tokens in sorted(scratch)) or "T=8192 to T=32768"
    return Goal(f"growth of scratch memory from {lengths}", threads * 2.0**18, grown, "MiB", False)


def _ours(rows: Sequence[Row], name: str, dtype: str, **params: int) -> list[Row]:
    return [
        row
        for row in rows
        if row.ours
        and row.op == "attend"
        and row.name == name
        and row.dtype == dtype
        and params.items() <= row.params.items()
    ]


def _least(values: Iterable[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return min(found) if found else None
