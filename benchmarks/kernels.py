"""`saccade bench kernels`: op x shape x dtype x implementation, against torch and the machine."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch

from ..engine.errors import RequestError
from . import (
    attend_cases,
    goals,
    machine,
    measure,
    method_rows,
    options,
    plots,
    report,
    row_cases,
    scratch,
)
from .cases import Case, Sizes
from .options import check_outputs, positive, progress, words
from .roofline import Ceilings
from .timing import Samples

DTYPES = (torch.bfloat16, torch.float32, torch.float16)
SCRATCH = "scratch"
OPS, METHODS = "ops", "methods"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write what was asked for. Raises RequestError for unusable options."""
    args = parser().parse_args(argv)
    check_outputs(args)
    sizes = Sizes.quick() if args.quick else Sizes()
    chosen = selected(sizes, words(args.op))
    parts = sections(args)
    with machine.using(args.isa, args.threads) as here, torch.inference_mode():
        progress(f"ceilings: {here.line()}")
        ceilings = Ceilings.find(DTYPES, sizes.matmul, sizes.cold)
        found = Found(ceilings, ceilings.sample(args.repeats))
        if OPS in parts:
            found.rows = measure.measure_all(chosen, ceilings, args.repeats, progress)
            found.scratch = scratch_memory(sizes, words(args.op))
        if METHODS in parts:
            found.methods = method_rows.measure(sizes, args.repeats, progress)
    finish(args, here, found)
    return 0


@dataclass
class Found:
    """What a run has measured."""

    ceilings: Ceilings
    samples: Samples
    rows: list[measure.Row] = field(default_factory=list)
    scratch: dict[int, int | None] = field(default_factory=dict)
    methods: list[method_rows.MethodRow] = field(default_factory=list)


def sections(args: argparse.Namespace) -> set[str]:
    """Which parts of the benchmark run: --only, or ops alone with --op, or all."""
    wanted = set(words(args.only)) or ({OPS} if args.op else {OPS, METHODS})
    if unknown := sorted(wanted - {OPS, METHODS}):
        raise RequestError(f"--only: {unknown[0]!r} is unknown; choose {OPS} or {METHODS}", "only")
    return wanted


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(
        prog="saccade bench kernels",
        description="Time the kernels beside torch and beside this machine's own ceilings.",
    )
    made.add_argument(
        "--op",
        action="append",
        default=[],
        metavar="NAME[,NAME]",
        help="only these: attend, prefill, window, chunk, decode, linear, rms_norm, rope, "
        "silu_mul, sigmoid_mul, write_pages, merge, scratch",
    )
    made.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NAME[,NAME]",
        help=f"{OPS}: the ops beside torch; {METHODS}: the attention methods beside our dense one",
    )
    made.add_argument("--quick", action="store_true", help="small shapes: a look, not a record")
    made.add_argument("--repeats", type=positive, default=7, help="rounds (default 7)")
    options.add_common(made)
    return made


def selected(sizes: Sizes, wanted: Sequence[str]) -> list[Case]:
    """The cases that match; RequestError for a name that matches none."""
    every = list(chain(attend_cases.cases(sizes), row_cases.cases(sizes)))
    for word in wanted:
        if word != SCRATCH and not any(case.matches([word]) for case in every):
            known = sorted({name for case in every for name in (case.op, case.name)} | {SCRATCH})
            raise RequestError(f"--op: {word!r} is unknown; choose from {', '.join(known)}", "op")
    return [case for case in every if case.matches(wanted)]


def scratch_memory(sizes: Sizes, wanted: Sequence[str]) -> dict[int, int | None]:
    """Scratch bytes of a prefill by length, empty when it was not asked for."""
    if wanted and not {SCRATCH, "attend", "prefill"} & set(wanted):
        return {}
    found = {}
    for tokens in sizes.scratch:
        progress(f"scratch memory of a prefill of {tokens} tokens")
        found[tokens] = scratch.scratch_bytes(tokens)
    return found


def finish(args: argparse.Namespace, here: machine.Machine, found: Found) -> None:
    """Tables on stdout and whatever files were asked for."""
    ceiling, parts = (found.ceilings, found.samples), sections(args)
    reached, tables = [], [report.ceiling_table(*ceiling)]
    if OPS in parts:
        reached += goals.kernel_goals(found.rows, found.scratch, here.threads)
        tables += [report.kernel_table(found.rows), report.scratch_table(found.scratch)]
    if METHODS in parts:
        reached += goals.method_goals(found.methods)
        tables.append(method_rows.table(found.methods))
    tables.append(report.goal_table(reached, here))
    title = "saccade bench kernels" + " --quick (not for a record)" * args.quick
    head = report.head(title, machine.today(), here, machine.versions())
    report.show(head, tables)
    rates = report.ceiling_rates(*ceiling)
    document: dict[str, Any] = {
        "benchmark": "kernels",
        "date": machine.today(),
        "quick": args.quick,
        "repeats": args.repeats,
        "machine": here,
        "versions": machine.versions(),
        "ceilings": rates,
        "rows": found.rows,
        "methods": found.methods,
        "goals": reached,
        "scratch_bytes": found.scratch,
    }
    options.write_outputs(
        args,
        "kernels",
        document,
        report.plain(head, tables),
        lambda path: plots.kernels(found.rows, found.methods, rates, here.line(), path),
    )
