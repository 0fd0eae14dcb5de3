"""Figures of a run against a server, under the names that `vllm bench serve` gives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, median, pstdev
from typing import Any

from .report import Table
from .serve_load import Outcome, Run

Figures = dict[str, Any]
_SHARES = (50, 90, 99)
_NAMES = {"ttft": "first token", "itl": "between tokens", "tpot": "per token", "e2el": "whole"}


def percentile(values: Sequence[float], percent: float) -> float:
    """By linear interpolation; NaN of nothing."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    at = percent / 100 * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])


def summary(run: Run, ttft_ms: float | None = None, itl_ms: float | None = None) -> Figures:
    """All figures of a run; ttft_ms, itl_ms: what counts as good."""
    good = [each for each in run.outcomes if each.ok]
    tokens_in = sum(each.input_tokens for each in good)
    tokens_out = sum(each.output_tokens for each in good)
    errors = [each.error for each in run.outcomes if not each.ok]
    found: Figures = {
        "completed": len(good),
        "failed": len(errors),
        "errors": sorted(set(errors))[:5],
        "num_prompts": len(run.outcomes),
        "duration": run.duration,
        "max_concurrency": run.concurrency,
        "request_rate": "inf" if run.rate is None else run.rate,
        "total_input_tokens": tokens_in,
        "total_output_tokens": tokens_out,
        "request_throughput": len(good) / run.duration,
        "output_throughput": tokens_out / run.duration,
        "total_token_throughput": (tokens_in + tokens_out) / run.duration,
    }
    if ttft_ms is not None or itl_ms is not None:
        fine = [each for each in good if _is_good(each, ttft_ms, itl_ms)]
        found["request_goodput"] = len(fine) / run.duration
    samples = {
        "ttft": [each.ttft_s for each in good],
        "tpot": [each.tpot_s for each in good if each.output_tokens > 1],
        "itl": [gap for each in good for gap in each.gaps],
        "e2el": [each.total_s for each in good],
    }
    for name, seconds in samples.items():
        found |= _spread(name, [1e3 * each for each in seconds])
    return found


def _is_good(each: Outcome, ttft_ms: float | None, itl_ms: float | None) -> bool:
    soon = ttft_ms is None or 1e3 * each.ttft_s <= ttft_ms
    return soon and (itl_ms is None or 1e3 * each.tpot_s <= itl_ms)


def _spread(name: str, values: Sequence[float]) -> Figures:
    if not values:
        return {}
    found = {
        f"mean_{name}_ms": fmean(values),
        f"median_{name}_ms": median(values),
        f"std_{name}_ms": pstdev(values),
    }
    return found | {f"p{share}_{name}_ms": percentile(values, share) for share in _SHARES}


def setting(found: Figures) -> str:
    """How the requests came."""
    rate, most = found["request_rate"], found["max_concurrency"]
    if rate == "inf":  # nobody waits for a time to send: vLLM's name of it
        return f"{most} at once"
    return f"{rate:g} a second" + (f", at most {most} at once" if most else "")


def latency_table(runs: Sequence[Figures]) -> Table:
    """Percentiles of every run."""
    columns = ("requests", "time (ms)", "mean", *[f"p{share}" for share in _SHARES])
    rows = [
        [setting(run), label, *_cells(run, name)]
        for run in runs
        for name, label in _NAMES.items()
        if f"mean_{name}_ms" in run
    ]
    return Table("Latency", columns, rows)


def _cells(run: Figures, name: str) -> list[str]:
    keys = [f"mean_{name}_ms", *[f"p{share}_{name}_ms" for share in _SHARES]]
    return [f"{run[key]:.2f}" if key in run else "-" for key in keys]


def throughput_table(runs: Sequence[Figures]) -> Table:
    """Rates of every run."""
    columns = ("requests", "completed", "failed", "requests/s", "output tokens/s", "tokens/s")
    good = any("request_goodput" in run for run in runs)
    rows = []
    for run in runs:
        rates = ("request_throughput", "output_throughput", "total_token_throughput")
        cells = [setting(run), str(run["completed"]), str(run["failed"])]
        cells += [f"{run[name]:.1f}" for name in rates]
        rows.append(cells + ([f"{run['request_goodput']:.1f}"] if good else []))
    notes = [f"failed: {error}" for run in runs for error in run["errors"]]
    return Table("Throughput", [*columns, *["good/s"] * good], rows, notes)


def beside_table(found: Mapping[str, Figures], big: Outcome, tokens: int) -> Table:
    """Short requests alone and beside a long one."""
    rows = [
        [name, str(run["completed"]), *_cells(run, "ttft"), *_cells(run, "itl")[:1]]
        for name, run in found.items()
    ]
    columns = ("short requests", "number", "mean", *[f"p{share}" for share in _SHARES], "itl mean")
    note = f"the long prompt's own first token came after {big.ttft_s:.1f} s ({big.error or 'ok'})"
    return Table("Time to first token (ms) of short requests, one at a time", columns, rows, [note])
