"""`saccade doctor`: what was found, what was chosen, and the reason for everything not chosen."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from ... import __version__
from ..errors import EXIT_OK
from ..tables import print_table


def add_parser(commands: Any) -> None:
    """Register the subcommand."""
    parser = commands.add_parser("doctor", help="show what was found on this machine and chosen")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Look and print; a missing or broken part is a finding and not a failure."""
    from ..machine import all_findings

    found = all_findings()
    if args.json:
        report = {"version": __version__, "findings": [asdict(finding) for finding in found]}
        print(json.dumps(report, indent=2))
        return EXIT_OK
    rows = [[each.group, each.name, each.state, each.detail] for each in found]
    print_table(f"Saccade {__version__}", ("part", "name", "state", "detail"), rows)
    return EXIT_OK
