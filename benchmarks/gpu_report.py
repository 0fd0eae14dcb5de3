"""Files of a GPU check: JSON for machines, a table and a picture for people."""

from __future__ import annotations

import json
import platform
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from ..kernels import gpu
from .goals import Goal
from .gpu_rows import Row
from .gpu_targets import targets


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
    """gpu_check.json and gpu_check.md: targets first, then all rows."""
    folder.mkdir(parents=True, exist_ok=True)
    facts, goals = machine(interpret), targets(rows)
    data = {
        "machine": facts,
        "targets": [as_dict(goal) for goal in goals],
        "rows": [row.as_dict() for row in rows],
    }
    (folder / "gpu_check.json").write_text(json.dumps(data, indent=1) + "\n")
    lines = ["# GPU check", "", ", ".join(f"{key} {value}" for key, value in facts.items()), ""]
    if interpret:
        lines += ["A dry run in the interpreter: no figure in it is a measurement.", ""]
    lines += ["| target | goal | measured | |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(goal.cells())} |" for goal in goals]
    lines += ["", "| section | case | result | note |", "|---|---|---|---|"]
    lines += [f"| {row.section} | {row.case} | {row.result} | {row.note} |" for row in rows]
    (folder / "gpu_check.md").write_text("\n".join(lines) + "\n")


def as_dict(goal: Goal) -> dict[str, Any]:
    """A target for JSON. met: None where it was not measured."""
    return asdict(goal) | {"met": goal.met}


def plot(path: Path, rows: list[Row]) -> None:
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
