"""Tables for people (rich on a terminal, plain text in a file or pipe) and JSON for machines."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

from .goals import NOT_MEASURED, Goal
from .machine import Machine
from .measure import Row
from .roofline import Ceilings, dtype_name
from .timing import Figure, Samples

SHARED = "Every ratio and share is the median over rounds in which all sides ran in turn."


@dataclass(frozen=True)
class Table:
    """A title, column names and rows of text; `notes` are printed below."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    def plain(self) -> str:
        """The table as aligned text."""
        cells = [self.columns, *self.rows]
        widths = [max(len(row[i]) for row in cells) for i in range(len(self.columns))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in cells
        ]
        rule = "-" * max(len(line) for line in lines)
        return "\n".join([self.title, lines[0], rule, *lines[1:], *self.notes])


def show(head: Sequence[str], tables: Sequence[Table]) -> None:
    """Print head lines and tables, in colour on a terminal."""
    if not sys.stdout.isatty():
        print(plain(head, tables), end="")
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table as Rich
    from rich.text import Text

    console = Console()
    for line in head:
        console.print(Text(line))
    colours = {"met": "green", "not met": "red"}
    for table in tables:
        rich = Rich(title=table.title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
        for column in table.columns:
            rich.add_column(column)
        for row in table.rows:
            rich.add_row(*[Text(cell, style=colours.get(cell, "")) for cell in row])
        console.print(rich, *[Text(note) for note in table.notes], sep="\n")


def plain(head: Sequence[str], tables: Sequence[Table]) -> str:
    """The whole report as text."""
    return "\n\n".join(["\n".join(head), *[table.plain() for table in tables]]) + "\n"


def head(title: str, date: str, machine: Machine, versions: dict[str, str]) -> list[str]:
    """Title, machine and versions."""
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    return [f"{title}, {date}", machine.line(), named]


def kernel_table(rows: Sequence[Row]) -> Table:
    """Every case with ours and the fastest peer under each other."""
    columns = (
        "op",
        "shape",
        "dtype",
        "implementation",
        "time",
        "spread",
        "GB/s",
        "TFLOP/s",
        "of ceiling",
        "x peer",
    )
    cells = [_kernel_cells(row) for row in rows]
    notes = [
        SHARED,
        "x peer: how many times faster than the fastest form of the peer. of ceiling: of the",
        "matrix product (mm) or the streaming read (rd); - where the data stays in cache.",
    ]
    wrong = [
        f"RESULTS DIFFER: {row.op} {row.shape} {row.dtype}: {row.wrong}"
        for row in rows
        if row.wrong
    ]
    return Table("Kernels", columns, cells, [*wrong, *notes])


def _kernel_cells(row: Row) -> list[str]:
    bound = {"matmul": "mm", "stream": "rd"}.get(row.bound, "")
    name = row.op if row.op == row.name else f"{row.op} {row.name}"
    return [
        name,
        row.shape,
        row.dtype,
        row.implementation,
        duration(row.seconds),
        f"{100 * row.spread:.0f} %",
        f"{row.gbps:.1f}",
        f"{row.tflops:.3f}" if row.tflops else "-",
        "-" if row.share is None else f"{100 * row.share:.0f} % {bound}",
        "" if row.ratio is None else f"{row.ratio:.2f}",
    ]


def ceiling_table(ceilings: Ceilings, samples: Samples) -> Table:
    """What the machine gave at the start of the run."""
    each = [*ceilings.matmul.values(), ceilings.stream]
    figures = {ceiling.name: Figure.of(samples[ceiling.name]) for ceiling in each}
    rows = [
        [c.name, c.rate(figures[c.name].value), f"{100 * figures[c.name].spread:.0f} %"]
        for c in each
    ]
    return Table("Ceilings at the start of the run", ("ceiling", "rate", "spread"), rows)


def ceiling_rates(ceilings: Ceilings, samples: Samples) -> dict[str, float]:
    """FLOP/s of "bf16 matmul" and the others, B/s of "stream"."""
    each = {f"{dtype_name(dtype)} matmul": c for dtype, c in ceilings.matmul.items()}
    each["stream"] = ceilings.stream
    return {key: c.amount / Figure.of(samples[c.name]).value for key, c in each.items()}


def scratch_table(used: dict[int, int | None]) -> Table:
    """Scratch memory of a causal prefill by length."""
    rows = [
        [str(tokens), NOT_MEASURED if size is None else f"{size / 2**20:.2f} MiB"]
        for tokens, size in sorted(used.items())
    ]
    note = (
        "Growth of the peak resident memory in one call, in a fresh process, outputs not counted."
    )
    title = "Scratch memory of a causal bf16 prefill, d=64"
    return Table(title, ("tokens", "scratch"), rows or [["-", NOT_MEASURED]], [note])


def goal_table(goals: Sequence[Goal], machine: Machine) -> Table:
    """Goals beside figures; the goals assume AMX, so the instruction set in use is named."""
    has_amx = "amx_bf16" in machine.flags
    note = f"Goals are stated for a machine with AMX; this run used {machine.isa}"
    note += "." if has_amx else " on a machine without AMX."
    columns = ("goal", "target", "found", "verdict")
    return Table("Goals", columns, [goal.cells() for goal in goals], [note])


def duration(seconds: float) -> str:
    """Seconds as text with three digits and a unit."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def write_json(path: Path, document: dict[str, Any]) -> None:
    """The document with dataclasses as objects."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1, default=_encode) + "\n")


def _encode(value: Any) -> Any:
    if isinstance(value, Goal):
        return asdict(value) | {"met": value.met}
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} is not JSON")
