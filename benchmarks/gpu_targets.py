"""What the project wants to reach on an H200, beside the rows of a run that measure it: one layer
of the shape of Llama-3-8B, 128K tokens, bf16; and the decode step of the whole model.
"""

from __future__ import annotations

from collections.abc import Sequence

from .goals import Goal
from .gpu_methods import DECODE, DELTA, FINE_MOBA, MOBA, NSA, PUBLISHED
from .gpu_rows import Row
from .gpu_step import METHODS

TOKENS = 131072
READ = 4300.0  # GB/s: what an H200 has been seen to read
# The sections of the rows that are judged.
PREFILL, STEP, SELECT = f"prefill {TOKENS}", f"engine step {TOKENS}", "select"
BATCHES = {1: 0.75, 8: 0.88, 64: 0.88}  # sequences, and the share of READ that decode must reach
PREFILL_MS = {MOBA: 25.0, FINE_MOBA: 12.0, NSA: 60.0, DELTA: 16.0}


def targets(rows: Sequence[Row]) -> list[Goal]:
    """Every target with the figure of these rows; None where they have none."""
    return [*_prefill(rows), *_decode(rows), *_steps(rows)]


def _prefill(rows: Sequence[Row]) -> list[Goal]:
    found = [
        Goal(f"dense prefill of 128K tokens, {name}", goal, row and row.tflops, " TFLOP/s")
        for name, case, goal in (
            ("as dispatched", "saccade dense", 560.0),
            ("our Triton kernel", "dense by triton", 430.0),
        )
        for row in (_row(rows, PREFILL, case),)
    ]
    for spec, goal in PREFILL_MS.items():
        name = f"{_short(spec)}, prefill of 128K tokens"
        found.append(_at_most(name, goal, _ms(rows, PREFILL, spec), " ms"))
    name = "FlashMoBA's published point (2 x 64K, 16 heads; 49 ms on an H100)"
    found.append(_at_most(name, 15.0, _ms(rows, PUBLISHED, FINE_MOBA), " ms"))
    return found


def _decode(rows: Sequence[Row]) -> list[Goal]:
    found = []
    for batch, goal in BATCHES.items():
        row = _row(rows, decode_section(batch), "saccade dense")
        share = None if row is None or row.gbps is None else row.gbps / READ
        found.append(Goal(f"paged decode at 128K, b={batch}, of 4.3 TB/s", goal, share, "%"))
    for spec in DECODE:
        name = f"{_short(spec)}, decode at 128K, b=1"
        found.append(_at_most(name, 20.0, _us(_ms(rows, decode_section(1), spec)), " us"))
    took = _us(_ms(rows, SELECT, "512 of 65536 scores"))
    found.append(_at_most("the best 512 of 65536 scores", 17.0, took, " us"))
    return found


def decode_section(batch: int) -> str:
    """The section of decode at 128K tokens."""
    return f"decode {TOKENS} b={batch}"


def _steps(rows: Sequence[Row]) -> list[Goal]:
    """Steps of the engine beside the time in which their bytes can be read, at the higher of the
    rates at which this run read and copied device memory.
    """
    rates = [_row(rows, "ceilings", case) for case in ("read", "copy")]
    rate = max((row.gbps for row in rates if row and row.gbps), default=None)
    found = []
    for method in METHODS:
        row = _row(rows, STEP, method)
        over = None
        if row is not None and row.gbps is not None and rate is not None:
            over = rate / row.gbps
        name = f"engine step of an 8B Llama at 128K, {_short(method)}, times its memory floor"
        found.append(_at_most(name, 1.15, over, "x"))
    return found


def _row(rows: Sequence[Row], section: str, case: str) -> Row | None:
    """The row, if it was timed and nothing was wrong with it."""
    for row in rows:
        if (row.section, row.case) == (section, case) and not row.failed:
            return row if row.milliseconds is not None else None
    return None


def _ms(rows: Sequence[Row], section: str, case: str) -> float | None:
    row = _row(rows, section, case)
    return None if row is None else row.milliseconds


def _us(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else 1e3 * milliseconds


def _at_most(name: str, goal: float, value: float | None, unit: str) -> Goal:
    return Goal(name, goal, value, unit, at_least=False)


def _short(spec: str) -> str:
    """A method's spec without what its name says well enough."""
    return "nsa" if spec == NSA else spec
