"""What the benchmark commands share: options, progress lines, and the files they leave."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import plots
from .report import write_json


def add_common(made: argparse.ArgumentParser) -> None:
    """The options of every benchmark."""
    made.add_argument("--threads", type=positive, help="threads for us and for torch alike")
    made.add_argument("--isa", help="instruction set of our kernels, or reference")
    made.add_argument("--json", type=Path, metavar="FILE", help="write the results as JSON")
    made.add_argument(
        "--plot", type=Path, metavar="FILE.png", help="write a plot (needs matplotlib)"
    )
    made.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="write NAME.json, NAME.txt and NAME.png to this folder",
    )


def positive(text: str) -> int:
    """An argument that must be a positive integer."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer, not {text!r}")
    return int(text)


def words(options: Sequence[str]) -> list[str]:
    """Names out of repeated, comma-separated options."""
    return [word.strip() for option in options for word in option.split(",") if word.strip()]


def progress(text: str) -> None:
    """A line on stderr, so that a person sees what runs."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def check_outputs(args: argparse.Namespace) -> None:
    """Before anything is measured: RequestError when --plot cannot be served."""
    if args.plot:
        plots.require(args.plot)


def write_outputs(
    args: argparse.Namespace,
    name: str,
    document: dict[str, Any],
    text: str,
    plot: Callable[[Path], None],
) -> None:
    """Writes what --json, --plot and --out ask for; without matplotlib --out has no plot."""
    drawings = [args.plot] if args.plot else []
    documents = [args.json] if args.json else []
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / f"{name}.txt").write_text(text)
        documents.append(args.out / f"{name}.json")
        if plots.available():
            drawings.append(args.out / f"{name}.png")
        else:
            progress("no plot: matplotlib is missing (pip install 'saccade[bench]')")
    for path in documents:
        write_json(path, document)
    for path in drawings:
        plot(path)
    for path in [*documents, *drawings]:
        progress(f"wrote {path}")
