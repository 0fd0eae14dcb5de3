"""What `saccade bench serve` measures: load, and short requests beside a long one."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..engine.errors import RequestError
from . import options, plots, serve_figures, serve_plots
from .options import progress
from .report import Table
from .serve_load import Load, Outcome, Run, closed, open_loop, outcome, wait_end


@dataclass(frozen=True)
class Found:
    """What a mode brings: tables, its part of the JSON document, and its panels of the plot.

    answered: whether every run had a request that was.
    """

    tables: Sequence[Table]
    document: dict[str, Any]
    panels: Sequence[plots.Panel]
    answered: bool = True


def numbers(text: str, option: str) -> list[float]:
    """Positive numbers out of `1,2,4`. RequestError."""
    try:
        found = [float(word) for word in options.words([text])]
    except ValueError:
        found = []
    if not found or not all(0 < each < float("inf") for each in found):
        raise RequestError(f"--{option} must be positive numbers, not {text!r}", option)
    return found


def counts(text: str, option: str) -> list[int]:
    """Positive whole numbers out of `1,2,4`. RequestError."""
    found = numbers(text, option)
    if not all(each.is_integer() for each in found):
        raise RequestError(f"--{option} must be positive whole numbers, not {text!r}", option)
    return [int(each) for each in found]


def arrivals(args: argparse.Namespace) -> tuple[list[float], list[int]]:
    """(rates, requests at once) that --mode load is to measure. RequestError."""
    rates = numbers(args.rate, "rate") if args.rate else []
    many = counts(args.concurrency or "8", "concurrency")
    if rates and args.concurrency and len(many) > 1:
        message = "--concurrency beside --rate is the most at once: one number"
        raise RequestError(f"{message}, not {args.concurrency!r}", "concurrency")
    return rates, many


def load(args: argparse.Namespace, load: Load, _: str | None) -> Found:
    """A run per concurrency or rate."""
    requests = args.requests or (16 if args.quick else 64)
    runs: list[Run] = []
    rates, many = arrivals(args)
    most = many[0] if args.concurrency else None
    asyncio.run(closed(load, 4, 2, first=10**6))  # warm
    for rate in rates:
        progress(f"{requests} requests at {rate:g} a second")
        runs.append(asyncio.run(open_loop(load, requests, rate, len(runs) * requests, most)))
    for count in [] if rates else many:
        progress(f"{requests} requests, {count} at once")
        runs.append(asyncio.run(closed(load, requests, count, len(runs) * requests)))
    limits = (args.goodput_ttft_ms, args.goodput_itl_ms)
    found = [serve_figures.summary(run, *limits) for run in runs]
    return Found(
        [serve_figures.latency_table(found), serve_figures.throughput_table(found)],
        {"runs": found, **(found[0] if len(found) == 1 else {})},
        serve_plots.load(found),
        all(each["completed"] for each in found),
    )


def long(args: argparse.Namespace, load: Load, _: str | None) -> Found:
    """Short requests alone, and again while one long prompt is read."""
    room = (load.max_model_len or args.long_tokens + 64) - 64
    tokens = min(args.long_tokens, room)
    if tokens < args.long_tokens:
        progress(f"the model's context holds a prompt of {tokens} tokens, not {args.long_tokens}")
    short = load.shaped(args.input_tokens, 8)
    count = args.requests or (8 if args.quick else 24)
    asyncio.run(closed(short, 4, 1, first=10**6))
    alone = asyncio.run(closed(short, count, 1))
    progress(f"short requests beside a prompt of {tokens} tokens")
    beside, big = asyncio.run(_beside(short, load.shaped(tokens, 8), count))
    rows = {"alone": alone, f"beside a prompt of {tokens} tokens": beside}
    found = {name: serve_figures.summary(run) for name, run in rows.items()}
    return Found(
        [serve_figures.beside_table(found, big, tokens)],
        {"long_tokens": tokens, "long_ttft_s": big.ttft_s, "short": found},
        serve_plots.load(list(found.values()), list(found))[:1],
        big.ok and found["alone"]["completed"] > 0,
    )


async def _beside(short: Load, big: Load, count: int) -> tuple[Run, Outcome]:
    try:
        exchange = await big.start(10**7)
    except OSError as error:
        return Run([], 1.0, 1), Outcome(0, 0.0, error=f"no connection: {error}")
    await asyncio.sleep(0.2)  # its reading has begun
    run = await closed(short, count, 1, first=count)
    number = 2 * count
    late = exchange.sent + big.patience_s
    while not exchange.begun.done() and time.perf_counter() < late:  # as long as it is read
        more = await closed(short, 4, 1, first=number)
        number += 4
        run = Run([*run.outcomes, *more.outcomes], run.duration + more.duration, 1)
    await wait_end(exchange, big.patience_s)
    found = outcome(exchange)
    until = exchange.sent + found.ttft_s
    return Run([each for each in run.outcomes if each.sent < until], run.duration, 1), found
