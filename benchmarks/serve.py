"""`saccade bench serve`: load on a server that speaks OpenAI's API, and what its clients feel."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..engine.errors import RequestError
from . import machine, options, plots, report, serve_modes, serve_overhead
from .goals import Goal
from .options import check_outputs, positive, progress
from .report import Table
from .serve_load import PATIENCE_S
from .serve_modes import Found
from .serve_server import Server
from .serve_target import KEYS, RANDOM, load_of, model_of, target_of

ALL = "all"
HEALTH_S = 5.0
MODES = {
    "load": "so many at once (--concurrency), or arrivals at random (--rate)",
    "long": "time to first token of short requests while one long prompt is read",
    "overhead": "time between tokens for clients, beside the engine's own step time",
    ALL: "one after the other, each with a server of its own",
}
RUN = {
    "load": serve_modes.load,
    "overhead": serve_overhead.overhead,
    "long": serve_modes.long,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write what was asked for; 1 when a run had no answer at all.

    RequestError for unusable options.
    """
    args = parser().parse_args(whole_values(sys.argv[1:] if argv is None else argv))
    check_outputs(args)
    serve_modes.arrivals(args)
    if args.url and args.serve_args:
        message = "--serve-args belongs to a server of our own: with --url there is none"
        raise RequestError(message, "serve_args")
    names = list(RUN) if args.mode == ALL else [args.mode]
    with machine.using(args.isa, args.threads) as here:  # servers of our own inherit it
        found = {name: measure(args, name) for name in names}
    tables = [table for each in found.values() for table in each.tables]
    title = f"saccade bench serve --mode {args.mode}" + " --quick (not for a record)" * args.quick
    head = report.head(title, machine.today(), here, machine.versions())
    report.show(head, tables)
    document: dict[str, Any] = {
        "benchmark": "serve",
        "mode": args.mode,
        "date": machine.today(),
        "quick": args.quick,
        "machine": here,
        "versions": machine.versions(),
    }
    whole = args.mode == ALL
    parts = {name: each.document for name, each in found.items()}
    document |= {"modes": parts} if whole else parts[args.mode]
    options.write_outputs(args, "serve", document, report.plain(head, tables), plot(found))
    return 0 if all(each.answered for each in found.values()) else 1


def whole_values(argv: Sequence[str]) -> list[str]:
    """The arguments with the value of --serve-args in one word with it: argparse takes what begins
    with a dash, as every value of it does, for an option of its own.
    """
    found: list[str] = []
    for word in argv:
        if found and found[-1] == "--serve-args":
            found[-1] += f"={word}"
        else:
            found.append(word)
    return found


def measure(args: argparse.Namespace, mode: str) -> Found:
    """One mode, against its server."""
    with target_of(args, mode) as (target, server):
        load = asyncio.run(load_of(args, target))
        progress(f"{target.host}:{target.port}, model {load.model}, --mode {mode}")
        found = RUN[mode](args, load, None if args.url else model_of(args, mode))
    about: dict[str, Any] = {"model_id": load.model, "shape": load.shape}
    first = Table(f"--mode {mode}", ("model", "requests"), [[load.model, load.shape.line()]])
    tables = [first, *found.tables]
    if server is not None:
        goal, table = started(server)
        about |= {"started_s": server.started_s, "ready_s": server.ready_s, "start_goal": goal}
        tables.insert(1, table)
    return replace(found, tables=tables, document={**about, **found.document})


def started(server: Server) -> tuple[Goal, Table]:
    """How long it took to start."""
    goal = Goal("/health is 200", HEALTH_S, server.ready_s, " s", at_least=False)
    times = [f"{seconds:.2f} s" for seconds in (server.started_s, server.ready_s)]
    name, target, value, verdict = goal.cells()
    note = f"{name}: {value}, goal {target}: {verdict}"
    columns = ("/health answered after", "with 200 after")
    return goal, Table("Start of the server", columns, [times], [note])


def duration(text: str) -> float:
    """An argument that must be a positive time."""
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a positive number, not {text!r}")
    return found


def plot(found: dict[str, Found]) -> Any:
    """Draws the panels of all modes."""
    panels = [panel for each in found.values() for panel in each.panels]
    title = ", ".join(f"{name}: {each.document['model_id']}" for name, each in found.items())

    def draw(path: Path) -> None:
        plots.draw(panels, f"saccade bench serve ({title})", path)

    return draw


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(
        prog="saccade bench serve",
        description="Load on an OpenAI-compatible server: time to first token, between tokens, "
        "and to the end; throughput. Without --url a server is started for it.",
    )
    made.add_argument("--url", help="a running server, such as http://127.0.0.1:8000")
    made.add_argument(
        "--model",
        metavar="PATH",
        help=f"what to serve without --url: a checkpoint, demo (default), or {RANDOM} (default of "
        "--mode long): random weights and a context for the long prompt",
    )
    made.add_argument(
        "--serve-args", default="", metavar="'...'", help="options of `saccade serve` without --url"
    )
    made.add_argument("--served-model-name", metavar="NAME", help="default: the server's first")
    made.add_argument("--api-key", metavar="KEY", help=f"default: ${' or $'.join(KEYS)}")
    texts = "; ".join(f"{name}: {text}" for name, text in MODES.items())
    made.add_argument("--mode", choices=tuple(MODES), default="load", help=texts)
    made.add_argument("--requests", type=positive, metavar="N", help="of each run (default 64)")
    made.add_argument(
        "--concurrency",
        metavar="N,N",
        help="requests at once (default 8); with --rate one number: at most",
    )
    made.add_argument("--rate", metavar="X,X", help="requests a second, arriving at random")
    made.add_argument("--input-tokens", type=positive, default=128, metavar="N")
    made.add_argument("--output-tokens", type=positive, default=64, metavar="N")
    made.add_argument(
        "--long-tokens", type=positive, default=131072, metavar="N", help="--mode long"
    )
    made.add_argument("--text", action="store_true", help="prompts of words and not of token ids")
    made.add_argument(
        "--goodput-ttft-ms", type=duration, metavar="X", help="counts as good below this"
    )
    made.add_argument(
        "--goodput-itl-ms", type=duration, metavar="X", help="the same, mean of a request"
    )
    made.add_argument(
        "--timeout",
        type=duration,
        default=PATIENCE_S,
        metavar="S",
        help="a request without an end after so long has failed (default %(default)g)",
    )
    made.add_argument("--rounds", type=positive, default=3, help="--mode overhead")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--quick", action="store_true", help="little of everything: a look")
    options.add_common(made)
    return made
