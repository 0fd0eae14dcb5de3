"""Everything that only a GPU can settle, in one run of under 10 minutes:

    python -m saccade.benchmarks.gpu_check [--out FOLDER] [--quick] [--only SECTION ...]
    python -m saccade.benchmarks.gpu_check --interpret     # a dry run at toy size, without a GPU

Ceilings of the machine; errors of every kernel in every dtype against fp64; the engine beside the
CPU engine token by token; what the project's targets are stated on; the engine's decode step of an
8B model; compute-sanitizer on small shapes; timings beside other libraries. Every section has a
share of the time, and those of the targets fit into it with all that comes before. What fails is a
row with its reason, what was not run is "not measured". Exit status: 1 when a check fails, 2
without a GPU.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..kernels import gpu
from .gpu_methods import PUBLISHED, method_decode, method_prefill, published_point
from .gpu_ops import op_rows
from .gpu_peers import decode_peers, prefill_peers
from .gpu_report import plot, write
from .gpu_rows import NOT_MEASURED, Row, correctness, reason_of, tokens
from .gpu_sanitizer import SECONDS, TOOLS, sanitized
from .gpu_step import step_rows
from .gpu_targets import SELECT, TOKENS, targets
from .gpu_times import ceilings, decode_times, latent_times, prefill_times, select_times

LIMIT_S = 570.0


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="What only a GPU can settle, in one run.")
    parser.add_argument("--out", type=Path, help="folder for gpu_check.json, .md and .svg")
    parser.add_argument("--quick", action="store_true", help="short contexts alone")
    parser.add_argument("--tiny", action="store_true", help="toy sizes; nothing is timed")
    parser.add_argument("--interpret", action="store_true", help="the same without a GPU")
    parser.add_argument("--only", action="append", help="sections whose names begin so")
    chosen = parser.parse_args(arguments)
    if chosen.interpret:
        os.environ["TRITON_INTERPRET"] = os.environ[gpu.INTERPRETED] = "1"
    if reason := gpu.gpu_missing():
        print(f"no GPU: {reason}; nothing was measured", file=sys.stderr)
        return 2
    tiny = chosen.interpret or chosen.tiny
    begin, rows = time.monotonic(), []
    for section in sections(tiny, chosen.quick):
        if chosen.only and not section.name.startswith(tuple(chosen.only)):
            continue
        left = LIMIT_S - (time.monotonic() - begin)
        seconds = min(section.seconds, left) if left >= section.least else 0.0
        for row in guarded(section.name, section.rows, seconds):
            rows.append(row)
            print(row.line(), flush=True)
        if chosen.out:  # whatever happens later
            write(chosen.out, rows, chosen.interpret)
    if chosen.out:
        plot(chosen.out / "gpu_check.svg", rows)
    for goal in targets(rows):
        print("target: " + " | ".join(goal.cells()))
    return int(any(row.failed for row in rows))


@dataclass(frozen=True)
class Section:
    """Rows that are made one after the other, in about so many seconds. least: with fewer left they
    are not begun, for one of them may take as long.
    """

    name: str
    seconds: float
    rows: Callable[[], Iterator[Row]]
    least: float = 0.0


def sections(tiny: bool, quick: bool) -> Iterator[Section]:
    """In the order in which they run: what matters most comes first. What one of them leaves of its
    time is the others'; together they end after LIMIT_S.
    """
    yield Section("ceilings", 15, lambda: ceilings(tiny))
    yield Section("correctness", 75, lambda: correctness(tiny))
    yield Section("ops", 45, lambda: op_rows(tiny))
    yield Section("engine", 80, lambda: tokens(tiny))
    longest = 24 if tiny else 8192 if quick else TOKENS
    yield from judged(longest, tiny)
    for n in () if tiny or quick else (8192, 32768):
        yield Section(f"prefill {n}", 20, partial(prefill_times, n, tiny))
        yield Section(f"prefill {n}", 20, partial(method_prefill, n, tiny))
    batches = (1, 2) if tiny else (1, 8, 64)
    for b in () if tiny or quick else batches:
        yield Section(f"decode 8192 b={b}", 10, partial(decode_times, 8192, b, tiny))
        yield Section(f"decode 8192 b={b}", 10, partial(method_decode, 8192, b, tiny))
    for b in batches:
        yield from beside(longest, b, tiny)
    for n in (longest,) if tiny or quick else (8192, 32768, longest):
        yield Section(f"prefill {n}", 25, partial(prefill_peers, n, tiny))
    whole = SECONDS * len(TOOLS)
    yield Section("sanitizer", whole, lambda: sanitized(tiny), 0.0 if tiny else whole)


def judged(n: int, tiny: bool) -> Iterator[Section]:
    """What the targets are stated on, where n is TOKENS; see `targets`."""
    yield Section(f"prefill {n}", 40, partial(prefill_times, n, tiny))
    yield Section(f"prefill {n}", 40, partial(method_prefill, n, tiny))
    yield Section(PUBLISHED, 10, partial(published_point, tiny))
    for b in (1, 2) if tiny else (1, 8, 64):
        yield Section(f"decode {n} b={b}", 12, partial(decode_times, n, b, tiny))
    yield Section(f"decode {n} b=1", 20, partial(method_decode, n, 1, tiny))
    yield Section(SELECT, 5, lambda: select_times(tiny))
    yield Section(f"engine step {n}", 110, partial(step_rows, n, tiny), 0.0 if tiny else 60.0)


def beside(n: int, b: int, tiny: bool) -> Iterator[Section]:
    """The rest of decode: methods in batches, latents, and other libraries."""
    if b > 1:
        yield Section(f"decode {n} b={b}", 10, partial(method_decode, n, b, tiny))
    yield Section(f"decode {n} b={b}", 5, partial(latent_times, n, b, tiny))
    yield Section(f"decode {n} b={b}", 5, partial(decode_peers, n, b, tiny))


def guarded(name: str, section: Callable[[], Iterator[Row]], seconds: float) -> Iterator[Row]:
    """The rows of a section, up to where it fails or its time is over; that is looked at between
    two rows.
    """
    begin = time.monotonic()
    try:
        made = section()
        while True:
            if seconds <= 0 or time.monotonic() - begin > seconds:
                reason = f"{seconds:.0f} s were over" if seconds > 0 else "too little time was left"
                yield Row(name, "the rest", NOT_MEASURED, reason)
                return
            row = next(made, None)
            if row is None:
                return
            yield row
    except Exception as error:  # noqa: BLE001 - one section must not end the others
        yield Row(name, "section", NOT_MEASURED, note=reason_of(error), failed=True)


if __name__ == "__main__":
    sys.exit(main())
