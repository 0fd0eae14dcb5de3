"""Everything that only a GPU can settle, in one run of under 10 minutes:

    python -m saccade.benchmarks.gpu_check [--out FOLDER] [--quick] [--only SECTION ...]
    python -m saccade.benchmarks.gpu_check --interpret     # a dry run at toy size, without a GPU

Ceilings of the machine; errors of every kernel in every dtype against fp64; the engine beside the
CPU engine token by token; compute-sanitizer on small shapes; timings beside other libraries. Every
section has a share of the time. What fails is a row with its reason, what was not run is "not
measured". Exit status: 1 when a check fails, 2 without a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch

from ..kernels import gpu
from .gpu_methods import method_decode, method_prefill
from .gpu_ops import op_rows
from .gpu_peers import LONGEST, decode_peers, prefill_peers
from .gpu_rows import NOT_MEASURED, Row, correctness, reason_of, tokens
from .gpu_sanitizer import sanitized
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
        for row in guarded(section.name, section.rows, min(section.seconds, left)):
            rows.append(row)
            print(row.line(), flush=True)
        if chosen.out:  # whatever happens later
            write(chosen.out, rows, chosen.interpret)
    if chosen.out:
        _plot(chosen.out / "gpu_check.svg", rows)
    return int(any(row.failed for row in rows))


@dataclass(frozen=True)
class Section:
    """Rows that are made one after the other, in about so many seconds."""

    name: str
    seconds: float
    rows: Callable[[], Iterator[Row]]


def sections(tiny: bool, quick: bool) -> Iterator[Section]:
    """In the order in which they run: what matters most comes first. What one of them leaves of its
    time is the others'; together they end after LIMIT_S.
    """
    yield Section("ceilings", 15, lambda: ceilings(tiny))
    yield Section("correctness", 75, lambda: correctness(tiny))
    yield Section("ops", 45, lambda: op_rows(tiny))
    yield Section("engine", 80, lambda: tokens(tiny))
    contexts = (24,) if tiny else (8192,) if quick else (8192, 32768, 131072)
    for n in contexts:
        seconds = 20 if n < LONGEST else 40
        yield Section(f"prefill {n}", seconds, partial(prefill_times, n, tiny))
        yield Section(f"prefill {n}", seconds, partial(method_prefill, n, tiny))
    for n in (24,) if tiny else (8192,) if quick else (8192, 131072):
        for b in (1, 2) if tiny else (1, 8, 64):
            yield Section(f"decode {n} b={b}", 10, partial(decode_times, n, b, tiny))
            yield Section(f"decode {n} b={b}", 5, partial(latent_times, n, b, tiny))
            yield Section(f"decode {n} b={b}", 10, partial(method_decode, n, b, tiny))
            yield Section(f"decode {n} b={b}", 5, partial(decode_peers, n, b, tiny))
    yield Section("select", 5, lambda: select_times(tiny))
    for n in contexts:
        yield Section(f"prefill {n}", 25, partial(prefill_peers, n, tiny))
    yield Section("sanitizer", 120, lambda: sanitized(tiny))


def guarded(name: str, section: Callable[[], Iterator[Row]], seconds: float) -> Iterator[Row]:
    """The rows of a section, up to where it fails or its time is over; that is looked at between
    two rows.
    """
    begin = time.monotonic()
    try:
        made = section()
        while True:
            if time.monotonic() - begin > seconds:
                yield Row(name, "the rest", NOT_MEASURED, f"{max(seconds, 0):.0f} s were over")
                return
            row = next(made, None)
            if row is None:
                return
            yield row
    except Exception as error:  # noqa: BLE001 - one section must not end the others
        yield Row(name, "section", NOT_MEASURED, note=reason_of(error), failed=True)


def machine(interpret: bool) -> dict[str, str]:
    """What ran: names and versions."""
    name = "interpreted, no GPU" if interpret else torch.cuda.get_device_name(gpu.device())
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "gpu": name,
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "triton": str(gpu.triton_version()),
        "python": platform.python_version(),
    }


def write(folder: Path, rows: list[Row], interpret: bool) -> None:
    """gpu_check.json and gpu_check.md."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = machine(interpret)
    data = {"machine": facts, "rows": [row.as_dict() for row in rows]}
    (folder / "gpu_check.json").write_text(json.dumps(data, indent=1) + "\n")
    lines = ["# GPU check", "", ", ".join(f"{key} {value}" for key, value in facts.items()), ""]
    if interpret:
        lines += ["A dry run in the interpreter: no figure in it is a measurement.", ""]
    lines += ["| section | case | result | note |", "|---|---|---|---|"]
    lines += [f"| {row.section} | {row.case} | {row.result} | {row.note} |" for row in rows]
    (folder / "gpu_check.md").write_text("\n".join(lines) + "\n")


def _plot(path: Path, rows: list[Row]) -> None:
    """Milliseconds of everything that was timed, a panel for each section."""
    timed: dict[str, list[Row]] = {}
    for row in rows:
        if row.milliseconds is not None:
            timed.setdefault(row.section, []).append(row)
    try:
        from matplotlib import pyplot
    except ImportError:
        print("no plot: matplotlib is not installed", file=sys.stderr)
        return
    if not timed:
        return
    heights = [len(found) for found in timed.values()]
    figure, panels = pyplot.subplots(
        len(timed),
        1,
        figsize=(9, 0.3 * sum(heights) + len(timed)),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    for axes, (section, found) in zip(panels[:, 0], timed.items(), strict=True):
        axes.barh([row.case for row in found], [row.milliseconds for row in found])
        axes.invert_yaxis()
        axes.set_xscale("log")
        axes.set_title(section, loc="left", fontsize="small")
    panels[-1, 0].set_xlabel("ms")
    figure.savefig(path)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
