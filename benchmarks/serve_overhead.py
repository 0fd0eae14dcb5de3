"""What a server adds to the engine's steps: eight streams, inside and outside."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from ..engine.errors import RequestError
from . import serve_plots
from .goals import Goal
from .http_client import Exchange, ask
from .options import progress
from .report import Table
from .serve_figures import Figures, percentile
from .serve_load import Load, outcome, wait_end
from .serve_modes import Found

GOAL = 0.05
STREAMS = 8
_STEPS, _BUSY = "saccade_engine_steps_total", "saccade_engine_busy_seconds_total"


def overhead(args: argparse.Namespace, load: Load, model: str | None) -> Found:
    """Rounds of the bare engine and of the server, in turn; model: what the bare engine loads,
    None where it is not at hand.
    """
    tokens = max(256, args.output_tokens)
    streams = load.shaped(args.input_tokens, tokens)
    bare = None if model is None else Bare(model, streams)
    rounds = []
    for number in range(-1, args.rounds):
        progress(f"round {number + 1} of {args.rounds}" if number >= 0 else "warming up")
        alone = bare.step_s(number * STREAMS) if bare else None
        served = asyncio.run(_served(streams, number * STREAMS))
        rounds.append(served | figures(served, alone))
    rounds = rounds[1:]
    # Beside the bare engine what the server takes from the engine's own step counts as well.
    key, beside = "overhead_to_bare", "the bare engine's decode step"
    if bare is None:
        key, beside = "overhead", "the engine's decode step"
    middle = sorted(rounds, key=lambda each: each[key])[len(rounds) // 2]
    goal = Goal(f"server overhead, {STREAMS} streams, of {beside}", GOAL, middle[key], "%", False)
    return Found(
        [table(rounds, goal)],
        {"rounds": rounds, "median": middle, "goals": [goal]},
        serve_plots.overhead(rounds),
    )


class Bare:
    """The engine in this process, without a server."""

    def __init__(self, model: str, load: Load) -> None:
        """Loads it as the server has done."""
        from ..engine.engine import Engine
        from ..engine.params import SamplingParams

        self._load = load
        self._engine = Engine(model, max_model_len=load.max_model_len)
        self._params = SamplingParams(
            max_tokens=load.shape.output_tokens, temperature=0, ignore_eos=True
        )

    def step_s(self, first: int) -> float:
        """Mean time of the steps in which all streams get a token."""
        prompts = [self._load.body(first + number)["prompt"] for number in range(STREAMS)]
        made = [self._engine.add(prompt, self._params) for prompt in prompts]
        total, count = 0.0, 0
        while self._engine.scheduler.has_work:
            all_run = all(each.branches[0].request.output and not each.finished for each in made)
            began = time.perf_counter()
            self._engine.step()
            if all_run:
                total, count = total + time.perf_counter() - began, count + 1
        return total / count


async def _served(load: Load, first: int) -> Figures:
    """All streams at once; what is counted lies between the last beginning and the first end, with
    room for snapshots of the engine's counters, which are some hundredths of an answer old.
    """
    streams = [await load.start(first + number) for number in range(STREAMS)]
    await _reached(load, streams, 0.15)
    before, began = await _engine(load), time.perf_counter()
    await _reached(load, streams, 0.9)
    ended, after = time.perf_counter(), await _engine(load)
    for each in streams:
        await wait_end(each, load.patience_s)
    gaps = []
    for each in streams:
        found = outcome(each)
        times = [each.sent + found.ttft_s]
        for gap in found.gaps:
            times.append(times[-1] + gap)
        gaps += [b - a for a, b in pairwise(times) if began <= a and b <= ended]
    steps = after[_STEPS] - before[_STEPS]
    if not steps or sum(gaps) < (ended - began) / 2:
        raise RuntimeError(f"too short to measure; a stream says: {outcome(streams[0]).error!r}")
    return {
        "step_s": (after[_BUSY] - before[_BUSY]) / steps,
        "served_itl_s": sum(gaps) / len(gaps),
        "p50_itl_s": percentile(gaps, 50),
        "p99_itl_s": percentile(gaps, 99),
        "steps": steps,
        "output_throughput": STREAMS * len(gaps) / sum(gaps),
    }


async def _reached(load: Load, streams: Sequence[Exchange], part: float) -> None:
    """Until all have sent this part of their tokens, or one has ended. RuntimeError when neither
    comes in time.
    """
    events, late = part * load.shape.output_tokens, time.perf_counter() + load.patience_s
    while min(each.events for each in streams) < events:
        if any(each.ended.done() for each in streams):
            break
        if time.perf_counter() > late:
            raise RuntimeError(f"no stream got that far within {load.patience_s:g} s")
        await asyncio.sleep(0.01)


async def _engine(load: Load) -> dict[str, float]:
    """The engine's counters, as of its last snapshot. RequestError where there are none."""
    lines = (await ask(load.target, "/metrics")).body.decode().splitlines()
    pairs = (line.rpartition(" ") for line in lines if line.startswith("saccade_engine_"))
    found = {name: float(value) for name, _, value in pairs}
    if not found.keys() >= {_STEPS, _BUSY}:
        message = (
            f"--mode overhead needs a server of ours: {load.target.url}/metrics has no {_STEPS}"
        )
        raise RequestError(message, "mode")
    return found


def figures(served: Mapping[str, float], alone: float | None) -> Figures:
    """Shares of a step: added outside of it, and, beside the bare engine, everything."""
    found: Figures = {"bare_step_s": alone, "overhead_to_bare": None}
    found["overhead"] = served["served_itl_s"] / served["step_s"] - 1
    if alone is not None:
        found["overhead_to_bare"] = served["served_itl_s"] / alone - 1
    return found


def table(rounds: Sequence[Mapping[str, Any]], goal: Goal) -> Table:
    """Every round, and the goal beside the median."""
    columns = ("round", "bare step", "step in the server", "between tokens", "p99", "overhead",
               "to bare", "tokens/s")  # fmt: skip
    rows = [
        [
            str(number + 1),
            *[_ms(each[key]) for key in ("bare_step_s", "step_s", "served_itl_s", "p99_itl_s")],
            *[_percent(each[key]) for key in ("overhead", "overhead_to_bare")],
            f"{each['output_throughput']:.0f}",
        ]
        for number, each in enumerate(rounds)
    ]
    name, target, value, verdict = goal.cells()
    note = f"{name}: median {value}, goal {target}: {verdict}"
    return Table("Eight streams at once", columns, rows, [note])


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.3f} ms"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"
