"""`saccade bench kernels|engine|serve`: hands its options to the benchmark of that name."""

from __future__ import annotations

import argparse
from importlib import import_module
from typing import Any

BENCHMARKS = {
    "kernels": "every op x shape x dtype x implementation, against this machine's ceilings",
    "engine": "prefill and decode tokens per second by context length",
    "serve": "load on an OpenAI-compatible server: latencies and throughput",
}


def add_parser(commands: Any) -> None:
    """Register the subcommand; the options belong to the benchmark's own parser."""
    parser = commands.add_parser(
        "bench", help="measure kernels, the engine or a server (`saccade bench kernels --help`)"
    )
    names = parser.add_subparsers(dest="benchmark", metavar="BENCHMARK", required=True)
    for name, text in BENCHMARKS.items():
        child = names.add_parser(name, help=text, add_help=False, prefix_chars="\0")
        child.add_argument("arguments", nargs="*")
        child.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Import the benchmark (the only import from `server` to `benchmarks`) and run it."""
    module = import_module(f"...benchmarks.{args.benchmark}", __package__)
    return int(module.main(args.arguments) or 0)
