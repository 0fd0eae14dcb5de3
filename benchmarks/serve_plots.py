"""What `saccade bench serve` draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .plots import CEILING, OURS, Panel, bars


def load(runs: Sequence[Mapping[str, Any]], labels: Sequence[str] = ()) -> list[Panel]:
    """Time to first token and between tokens of every run, and its throughput."""
    names = [label.replace(" prompt", "\nprompt") for label in labels] or [
        f"{run['max_concurrency']} at once"
        if run["request_rate"] == "inf"
        else f"{run['request_rate']:g}/s"
        for run in runs
    ]
    panels = []
    for name, text in (("ttft", "first token"), ("itl", "between tokens")):
        series = {
            f"p{share}": [run.get(f"p{share}_{name}_ms") for run in runs] for share in (50, 90, 99)
        }
        title = f"{text} of short requests" if labels else text
        panels.append(bars(names, series, title, "ms"))
    rates = {"output": [run["output_throughput"] for run in runs]}
    return [*panels, bars(names, rates, "throughput", "output tokens/s")]


def overhead(rounds: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """The engine's step beside the time between tokens that clients see, over all rounds."""
    times = {
        "bare step": "bare_step_s",
        "in the server": "step_s",
        "between tokens": "served_itl_s",
    }
    shares = {"of the server's own step": "overhead", "of the bare step": "overhead_to_bare"}
    title = f"eight streams, {len(rounds)} rounds"
    return [
        _spread(rounds, times, 1e3, title, "ms"),
        _spread(rounds, shares, 100, "what the server adds", "% of a step"),
    ]


def _spread(
    rounds: Sequence[Mapping[str, Any]],
    keys: Mapping[str, str],
    factor: float,
    title: str,
    unit: str,
) -> Panel:
    """Every round as a dot, boxes from quartile to quartile; without what was not measured."""
    series = {
        name: [factor * each[key] for each in rounds if each[key] is not None]
        for name, key in keys.items()
    }
    found = {name: values for name, values in series.items() if values}

    def draw(axes: Any) -> None:
        line = {"color": CEILING, "linewidth": 1.5}
        axes.boxplot(list(found.values()), widths=0.5, showfliers=False, medianprops=line)
        for at, values in enumerate(found.values(), 1):
            axes.plot([at] * len(values), values, ".", color=OURS, alpha=0.5)
        axes.set_xticks(range(1, len(found) + 1), list(found), fontsize=7)
        axes.set_title(title, fontsize=9)
        axes.set_ylabel(unit)

    return Panel(1.4 + 1.3 * len(keys), draw)
