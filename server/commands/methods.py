"""`saccade methods`: the attention methods, their options and where they run."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from ..errors import EXIT_OK
from ..tables import print_table

COLUMNS = ("method", "parameters", "phases", "extra state", "backends", "source")


def add_parser(commands: Any) -> None:
    """Register the subcommand."""
    parser = commands.add_parser("methods", help="list the attention methods")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the table that `engine/attention/spec.py` keeps."""
    from ...engine.attention.spec import describe_methods

    found = describe_methods()
    if args.json:
        print(json.dumps([asdict(method) for method in found], indent=2))
        return EXIT_OK
    keys = ("name", "parameters", "phases", "state", "backends", "source")
    rows = [[cell(getattr(method, key)) for key in keys] for method in found]
    print_table("Attention methods", COLUMNS, rows)
    return EXIT_OK


def cell(value: object) -> str:
    """A table cell: sequences become comma-separated lists, nothing becomes a dash."""
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text or "-"
