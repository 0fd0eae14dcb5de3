"""Tables for people: rich on a terminal, plain aligned text in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Sequence

Row = Sequence[str]

# Cells that stand out on a terminal.
_STYLES = {"chosen": "bold green", "broken": "bold red", "missing": "dim", "unusable": "dim"}


def print_table(title: str, columns: Row, rows: Sequence[Row]) -> None:
    """Print `rows` (one string per column) under their title and column names."""
    if sys.stdout.isatty():
        _print_rich(title, columns, rows)
    else:
        print("\n".join(plain_lines(title, columns, rows)))


def plain_lines(title: str, columns: Row, rows: Sequence[Row]) -> list[str]:
    """The table as lines of text, columns two spaces apart; the last column is not padded."""
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns) - 1)]
    lines = [title]
    for row in [columns, *rows]:
        padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        lines.append("  ".join([*padded, row[-1]]).rstrip())
    return lines


def _print_rich(title: str, columns: Row, rows: Sequence[Row]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*[Text(cell, _STYLES.get(cell, "")) for cell in row])
    Console().print(table)
