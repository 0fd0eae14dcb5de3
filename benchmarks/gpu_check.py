"""Everything that only a GPU can settle, in one run of under 10 minutes:

    python -m saccade.benchmarks.gpu_check [--out FOLDER] [--quick]
    python -m saccade.benchmarks.gpu_check --interpret     # a dry run at toy size, without a GPU

Ceilings of the machine, errors of the attention kernels against fp64, the engine beside the CPU
engine token by token, and timings beside torch's own attention. What fails is a row with its
reason, what was not run is "not measured". Exit status: 1 when a check fails, 2 without a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import torch

from ..kernels import gpu
from .gpu_rows import NOT_MEASURED, Row, correctness, tokens
from .gpu_times import ceilings, decode_times, prefill_times

LIMIT_S = 570.0


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="What only a GPU can settle, in one run.")
    parser.add_argument("--out", type=Path, help="folder for gpu_check.json, .md and .svg")
    parser.add_argument("--quick", action="store_true", help="short contexts alone")
    parser.add_argument("--interpret", action="store_true", help="toy sizes, without a GPU")
    chosen = parser.parse_args(arguments)
    if chosen.interpret:
        os.environ["TRITON_INTERPRET"] = os.environ[gpu.INTERPRETED] = "1"
    if reason := gpu.gpu_missing():
        print(f"no GPU: {reason}; nothing was measured", file=sys.stderr)
        return 2
    begin = time.monotonic()
    rows = []
    for name, section in sections(chosen.interpret, chosen.quick):
        if time.monotonic() - begin > LIMIT_S:
            found = [Row(name, "all", NOT_MEASURED, note="the 10 minutes were over")]
        else:
            found = guarded(name, section)
        for row in found:
            rows.append(row)
            print(row.line(), flush=True)
    if chosen.out:
        write(chosen.out, rows, chosen.interpret)
    return int(any(row.failed for row in rows))


def sections(interpret: bool, quick: bool) -> Iterator[tuple[str, Callable[[], Iterator[Row]]]]:
    """(name, rows) in the order in which they run: what matters most comes first."""
    yield "ceilings", lambda: ceilings(interpret)
    yield "correctness", lambda: correctness(interpret)
    yield "engine", lambda: tokens(interpret)
    contexts = (24,) if interpret else (8192,) if quick else (8192, 32768, 131072)
    for context in contexts:
        yield f"prefill {context}", lambda n=context: prefill_times(n, interpret)
    for context in (24,) if interpret else (8192,) if quick else (8192, 131072):
        for batch in (1, 2) if interpret else (1, 8, 64):
            yield (
                f"decode {context} b={batch}",
                lambda n=context, b=batch: decode_times(n, b, interpret),
            )


def guarded(name: str, section: Callable[[], Iterator[Row]]) -> list[Row]:
    """The rows of a section, up to where it fails."""
    found = []
    try:
        found.extend(section())
    except Exception as error:  # noqa: BLE001 - one section must not end the others
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]:.160}"
        found.append(Row(name, "section", NOT_MEASURED, note=reason, failed=True))
    return found


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
    """gpu_check.json and gpu_check.md, and a plot where matplotlib is installed."""
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
    _plot(folder / "gpu_check.svg", rows)


def _plot(path: Path, rows: list[Row]) -> None:
    """Milliseconds of everything that was timed."""
    timed = [row for row in rows if row.milliseconds is not None]
    try:
        from matplotlib import pyplot
    except ImportError:
        print("no plot: matplotlib is not installed", file=sys.stderr)
        return
    if not timed:
        return
    figure, axes = pyplot.subplots(figsize=(8, 0.3 * len(timed) + 1))
    axes.barh([f"{row.section}: {row.case}" for row in timed], [row.milliseconds for row in timed])
    axes.set_xscale("log")
    axes.set_xlabel("ms")
    figure.savefig(path, bbox_inches="tight")
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
