"""`saccade serve`: reserved for the HTTP server, which this version does not have."""

from __future__ import annotations

import argparse
from typing import Any

from ..errors import UsageError


def add_parser(commands: Any) -> None:
    """Register the subcommand."""
    parser = commands.add_parser(
        "serve", help="the HTTP server (not in this version)", add_help=False, prefix_chars="\0"
    )
    parser.add_argument("arguments", nargs="*")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Say so, and what to use instead."""
    raise UsageError(
        "the HTTP server is not in this version; use `saccade generate` or Engine.generate"
    )
