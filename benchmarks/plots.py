"""Plots of a run. matplotlib is optional: `require` says how to get it, before any measuring."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..engine.errors import RequestError
from .measure import Row
from .method_cases import DENSE
from .roofline import GIGA, TERA

if TYPE_CHECKING:
    from .engine_rows import EngineRow
    from .method_rows import MethodRow

OURS, PEER, CEILING = "#1f77b4", "#c7c7c7", "#d62728"
OURS_DENSE = "#9ecae1"
_READ = ("decode", "scattered")  # cases of attention that read more than they compute
_KINDS = (".png", ".svg", ".pdf")


def available() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def require(path: Path) -> None:
    """RequestError without matplotlib, and for a file that is no picture."""
    if not available():
        raise RequestError("--plot needs matplotlib: pip install 'saccade[bench]'", "plot")
    if path.suffix.lower() not in _KINDS:
        raise RequestError(f"--plot: {path} must end in {', '.join(_KINDS)}", "plot")


def figure(widths: Sequence[float], height: float, title: str) -> tuple[Any, Sequence[Any]]:
    """A figure with panels of these widths (inches) side by side; needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(sum(widths), height), layout="constrained")
    FigureCanvasAgg(made)
    made.suptitle(title, fontsize=10)
    axes = made.subplots(1, len(widths), width_ratios=widths)
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
    return made, axes


def save(made: Any, path: Path) -> None:
    """Write the PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made.savefig(path, dpi=110)


def paired_bars(
    axes: Any,
    labels: Sequence[str],
    series: Mapping[str, Sequence[float | None]],
    colours: Sequence[str],
) -> None:
    """Groups of bars side by side; None leaves a gap that says so."""
    width = 0.8 / len(series)
    for index, (name, values) in enumerate(series.items()):
        at = [i + (index - (len(series) - 1) / 2) * width for i in range(len(labels))]
        drawn = axes.bar(
            at, [value or 0 for value in values], width, label=name, color=colours[index]
        )
        texts = ["not\nmeasured" if value is None else _number(value) for value in values]
        axes.bar_label(drawn, texts, fontsize=7, padding=1)
    axes.set_xticks(range(len(labels)), labels, fontsize=6)
    axes.margins(y=0.3)  # room for the legend


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def kernels(
    rows: Sequence[Row],
    methods: Sequence[MethodRow],
    rates: Mapping[str, float],
    title: str,
    path: Path,
) -> None:
    """Attention prefill in TFLOP/s, decode in GB/s, every ratio to its peer, methods beside dense.

    rates: the ceilings by name, FLOP/s for "bf16 matmul" and B/s for "stream".
    """
    made, (prefill, decode, others, beside) = figure((6.0, 5.4, 5.4, 6.4), 6.0, title)
    bf16 = [row for row in rows if row.op == "attend" and row.dtype == "bf16"]
    flat = [row for row in bf16 if row.name not in _READ]
    _against_peer(prefill, flat, "tflops", "bf16 prefill", "TFLOP/s")
    if flat and "bf16 matmul" in rates:
        _line(prefill, rates["bf16 matmul"] / TERA, "bf16 matrix product")
    deep = [row for row in bf16 if row.name in _READ]
    _against_peer(decode, deep, "gbps", "bf16 decode", "GB/s")
    if deep and "stream" in rates:
        _line(decode, rates["stream"] / GIGA, "streaming read")
    _ratios(others, rows)
    _methods(beside, methods)
    save(made, path)


def engine(rows: Sequence[EngineRow], floors: Mapping[int, float], title: str, path: Path) -> None:
    """Prefill and decode tokens per second by context. floors: the decode limit of each context."""
    made, (prefill, decode) = figure((5.6, 5.6), 4.6, title)
    contexts = list(floors)
    for axes, field in ((prefill, "prefill"), (decode, "decode")):
        series = {
            name: [_rate(rows, name, context, field) for context in contexts]
            for name in dict.fromkeys(row.implementation for row in rows)
        }
        colours = (OURS, OURS_DENSE, PEER) if len(series) == 3 else (OURS, PEER)
        paired_bars(axes, [str(context) for context in contexts], series, colours)
        axes.set_title(field, fontsize=9)
        axes.set_xlabel("context (tokens)")
        axes.set_ylabel("tokens/s")
    at = range(len(contexts))
    decode.hlines(
        list(floors.values()),
        [i - 0.45 for i in at],
        [i + 0.45 for i in at],
        color=CEILING,
        linestyle="--",
        linewidth=1,
        label="memory floor",
    )
    for axes in (prefill, decode):
        axes.legend(fontsize=7)
    save(made, path)


def _rate(rows: Sequence[EngineRow], name: str, context: int, field: str) -> float | None:
    found = [row for row in rows if row.implementation == name and row.context == context]
    value = getattr(found[0], field) if found else None
    return None if value is None else float(value.value)


@dataclass(frozen=True)
class Panel:
    """A part of a figure: its width in inches, and what draws it."""

    width: float
    draw: Callable[[Any], None]


def draw(panels: Sequence[Panel], title: str, path: Path) -> None:
    """Panels side by side, in two rows where there are many."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    half = (len(panels) + 1) // 2 if len(panels) > 4 else len(panels)
    rows = [row for row in (panels[:half], panels[half:]) if row]
    width = max(sum(panel.width for panel in row) for row in rows)
    made = Figure(figsize=(width, 4.4 * len(rows)), layout="constrained")
    FigureCanvasAgg(made)
    made.suptitle(title, fontsize=10)
    for row, part in zip(rows, made.subfigures(len(rows), 1, squeeze=False)[:, 0], strict=True):
        widths = [panel.width for panel in row]
        axes = part.subplots(1, len(row), width_ratios=widths, squeeze=False)[0]
        for panel, each in zip(row, axes, strict=True):
            each.spines[["top", "right"]].set_visible(False)
            panel.draw(each)
    save(made, path)


def bars(
    names: Sequence[str], series: Mapping[str, Sequence[float | None]], title: str, unit: str
) -> Panel:
    """Groups of bars side by side."""

    def draw(axes: Any) -> None:
        colours = (OURS, PEER, CEILING)[: len(series)]
        paired_bars(axes, names, series, colours)
        axes.set_title(title, fontsize=9)
        axes.set_ylabel(unit)
        if len(series) > 1:
            axes.legend(fontsize=7)

    return Panel(1.4 + 0.35 * len(series) * len(names), draw)


def _against_peer(axes: Any, rows: Sequence[Row], field: str, title: str, unit: str) -> None:
    axes.set_title(title, fontsize=9)
    axes.set_ylabel(unit)
    ours = [row for row in rows if row.ours]
    peers = [row for row in rows if not row.ours]
    if not ours:
        axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes)
        return
    labels = [_label(row) for row in ours]
    series = {ours[0].implementation: [getattr(row, field) for row in ours]}
    series[f"{ours[0].peer} (its fastest form)"] = [getattr(row, field) for row in peers]
    paired_bars(axes, labels, series, (OURS, PEER))
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(0, 1.0))


def _label(row: Row) -> str:
    params = [f"{key}={value}" for key, value in row.params.items() if key not in ("q", "kv")]
    return "\n".join([row.name, *params])


def _line(axes: Any, value: float, name: str) -> None:
    axes.axhline(value, color=CEILING, linewidth=1, linestyle="--", label=f"{name}: {value:.3g}")
    axes.legend(fontsize=7)
    axes.set_ylim(top=max(axes.get_ylim()[1], value * 1.3))


def _ratios(axes: Any, rows: Sequence[Row]) -> None:
    axes.set_title("speed relative to the fastest torch form", fontsize=9)
    axes.set_xlabel("times as fast (log scale; dashed: as fast as torch)", fontsize=8)
    ours = [row for row in rows if row.ours and row.ratio is not None][::-1]
    names = [f"{row.name} {_short(row)} {row.dtype}" for row in ours]
    ratios = [row.ratio or 1.0 for row in ours]
    lengths = [ratio - 1 for ratio in ratios]
    axes.set_xscale("log", base=2)  # half as fast is as far from 1 as twice as fast
    drawn = axes.barh(range(len(ours)), lengths, left=1, color=OURS, height=0.7)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.bar_label(drawn, [f"{ratio:.2f}" for ratio in ratios], fontsize=6, padding=1)
    axes.set_yticks(range(len(ours)), names, fontsize=6)
    axes.axvline(1.0, color=CEILING, linewidth=1, linestyle="--")
    axes.margins(x=0.12, y=0.01)


def _methods(axes: Any, rows: Sequence[MethodRow]) -> None:
    axes.set_title("sparse methods, times as fast as our dense attention", fontsize=9)
    found = [row for row in rows if row.spec != DENSE]
    if not found:
        axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes)
        return
    found = found[::-1]
    names = [f"{row.spec}, {row.phase} {round(row.tokens / 1024)}K" for row in found]
    axes.set_xscale("log", base=2)
    at, left = range(len(found)), 1.0  # as fast as dense
    drawn = axes.barh(at, [row.ratio - left for row in found], left=left, color=OURS, height=0.6)
    axes.bar_label(drawn, [f"{row.ratio:.1f}" for row in found], fontsize=7, padding=1)
    axes.plot(
        [1 / row.keys for row in found], at, "|", color=CEILING, markersize=16,
        label="keys of dense over keys read",
    )  # fmt: skip
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_yticks(at, names, fontsize=6)
    axes.set_xlabel("times as fast (log scale)", fontsize=8)
    axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.1))


def _short(row: Row) -> str:
    return " ".join(f"{k}={v}" for k, v in row.params.items() if k not in ("q", "kv"))
