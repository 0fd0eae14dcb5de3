"""`saccade calibrate`: thresholds for heads that choose their tokens, measured on a text."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import EXIT_OK, UsageError
from ..options import ENGINE, add_group, given, parse_size
from ..tables import print_table
from .generate import read_prompt

if TYPE_CHECKING:
    from ...engine.calibrate import Calibration

_ENGINE = {f"--{name}": ENGINE[f"--{name}"] for name in ("dtype", "page-size", "kv-cache-memory")}
_COLUMNS = ("attention", "perplexity", "rows chosen", "overlap", "least overlap of a head")


def add_parser(commands: Any) -> None:
    """Register the subcommand."""
    parser = commands.add_parser(
        "calibrate",
        help="measure the thresholds of heads that choose their tokens",
        description="Measure, on a text like those to be served, a threshold per head such that as "
        "many tokens are kept as in training, and how far causal rules are from that of training.",
    )
    parser.add_argument("model", help="a checkpoint folder")
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("-p", "--prompt", metavar="TEXT", help="the text itself")
    prompt.add_argument("-f", "--prompt-file", metavar="PATH", help="a UTF-8 file that holds it")
    parser.add_argument(
        "-o",
        "--out",
        metavar="PATH",
        help="where to write the figures, for --calibration (default: calibration.json in the "
        "checkpoint's folder, where it is found without being named)",
    )
    parser.add_argument(
        "--length", type=int, metavar="N", help="tokens of a text (default: as in training)"
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=1,
        metavar="N",
        help="times to measure again under the thresholds found so far (default 1)",
    )
    add_group(parser, "engine", _ENGINE)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure, write the file and print how the rules compare."""
    text = read_prompt(args)
    found, path = measure(args, text)
    found.write(path)
    judged = f"{found.held_out} held out" if found.held_out else "the same ones judged"
    print_table(
        f"{found.texts} texts of up to {found.length} tokens, {judged}", _COLUMNS, rows(found)
    )
    print(f"Written: {path}")
    return EXIT_OK


def measure(args: argparse.Namespace, text: str) -> tuple[Calibration, Path]:
    """The figures, and where they belong; a value that the engine refuses is a usage error."""
    options = given(args, _ENGINE)
    try:
        if "kv_cache_memory" in options:
            options["kv_cache_memory"] = parse_size(options["kv_cache_memory"])
        from ...engine.calibrate import Calibrator

        calibrator = Calibrator.of(args.model, **options)
        path = Path(args.out) if args.out else calibrator.default_path
        if not path.parent.is_dir():
            raise UsageError(f"--out: {path.parent} is not a folder")
        return calibrator.calibrate(text, args.length, args.rounds), path
    except ValueError as error:
        raise UsageError(str(error)) from error


def rows(found: Calibration) -> list[list[str]]:
    """A line per rule, that of training first."""
    return [
        [
            each.attention,
            f"{each.perplexity:.4g}",
            f"{100 * each.chosen:.3g} %",
            f"{100 * each.overlap:.3g} %",
            f"{100 * each.least:.3g} %",
        ]
        for each in found.rules
    ]
