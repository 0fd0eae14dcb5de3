"""Targets of the GPU check: what they make of rows, and that a run makes these very rows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from saccade.benchmarks import gpu_check, gpu_methods, gpu_step, gpu_times
from saccade.benchmarks.goals import NOT_MEASURED, Goal
from saccade.benchmarks.gpu_rows import Row, pages
from saccade.benchmarks.gpu_targets import targets


def row(section: str, case: str, ms: float, **work: Any) -> Row:
    return Row(section, case, f"{ms} ms", "", ms, **work)


def named(rows: list[Row]) -> dict[str, Goal]:
    return {goal.name: goal for goal in targets(rows)}


def test_nothing_is_estimated():
    """Without rows, or with such as failed or were not timed, no target has a figure."""
    found = targets([])
    assert len(found) == 18 and len({goal.name for goal in found}) == 18
    assert all(goal.value is None and goal.met is None for goal in found)
    assert all(goal.cells()[2] == NOT_MEASURED for goal in found)
    failed = Row("prefill 131072", "moba(128, 8)", "1 ms", "", 1.0, failed=True)
    dry = Row("prefill 131072", "moba(512, 8)", NOT_MEASURED, "dry run", read=1e9)
    assert targets([failed, dry]) == found
    step = row("engine step 131072", "dense", 8.0, read=32e9)  # without the machine's own rate
    assert targets([step]) == found


def test_figures_and_verdicts():
    """In the units of the goals, from operations, bytes and milliseconds."""
    rows = [
        row("ceilings", "copy", 1.0, read=4.0e9),
        row("ceilings", "read", 1.0, read=4.2e9),
        row("prefill 131072", "saccade dense", 250.0, flops=1.4e14),
        row("prefill 8192", "moba(128, 8)", 1.0),
        row("prefill 131072", "moba(128, 8)", 12.5),
        row("decode 131072 b=1", "saccade dense", 0.125, read=0.5375e9),
        row("decode 131072 b=8", "saccade dense", 1.0, read=3.655e9),
        row("decode 131072 b=1", "moba(512, 8)", 0.0195),
        row("published point", "moba(128, 8)", 15.0),
        row("select", "512 of 65536 scores", 0.018),
        row("engine step 131072", "dense", 9.2, read=33.6e9),
        row("engine step 131072", "quest(budget=2048)", 4.0, read=16.8e9),
    ]
    found = named(rows)
    step = "engine step of an 8B Llama at 128K"
    judged = {
        "dense prefill of 128K tokens, as dispatched": (560.0, True),
        "moba(128, 8), prefill of 128K tokens": (12.5, False),
        "paged decode at 128K, b=1, of 4.3 TB/s": (1.0, True),
        "paged decode at 128K, b=8, of 4.3 TB/s": (0.85, False),
        "moba(512, 8), decode at 128K, b=1": (19.5, True),
        "FlashMoBA's published point (2 x 64K, 16 heads; 49 ms on an H100)": (15.0, True),
        "the best 512 of 65536 scores": (18.0, False),
        f"{step}, dense, times its memory floor": (1.15, True),
        f"{step}, quest(budget=2048), times its memory floor": (1.0, True),
    }
    for name, (value, met) in judged.items():
        assert found[name].value == pytest.approx(value) and found[name].met is met, name
    others = [goal for name, goal in found.items() if name not in judged]
    assert len(others) == 9 and all(goal.value is None for goal in others)
    cells = found["the best 512 of 65536 scores"].cells()
    assert cells[1:] == ["<= 17.00 us", "18.00 us", "not met"]


def test_a_run_makes_the_rows_of_every_target(interpreted, monkeypatch):
    """At its real sizes, with nothing computed: each of them is in the table, at its own shape."""
    shapes: dict[tuple[str, str], Any] = {}
    latest: list[Any] = []

    def small(lengths, rows, heads, dim, dtype, device, value_dim=None):
        latest[:] = [(tuple(lengths), tuple(rows), heads, dim, dtype)]
        return pages([16] * len(lengths), [1] * len(rows), (2, 1), 32, dtype, device)

    def timed(section, case, call, dry, flops=0.0, read=0.0, cold=False, peer=False):
        assert not dry
        shapes[section, case] = latest[0] if latest else None
        return row(section, case, 1.0, flops=flops, read=read)

    for module in (gpu_times, gpu_methods):
        monkeypatch.setattr(module, "pages", small)
        monkeypatch.setattr(module, "timed", timed)
        monkeypatch.setattr(module, "captured", lambda call, dry: call)
    monkeypatch.setattr(gpu_methods, "_Layer", lambda spec, held: spec)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 40, 1 << 40))
    monkeypatch.setattr(gpu_step, "engine_of", lambda *_: SimpleNamespace(close=lambda: None))
    monkeypatch.setattr(gpu_step, "play", lambda *_: gpu_step.Played(1.0, 0, 1.0, [0.01] * 68))
    monkeypatch.setattr(gpu_step, "step_bytes", lambda *_: (32e9, ""))
    monkeypatch.setattr(gpu_step, "replays", lambda _: 0)
    monkeypatch.setattr(gpu_step, "refusals", lambda _: [])
    rows = [row("ceilings", case, 1.0, read=4e9) for case in ("copy", "read")]
    for section in gpu_check.judged(131072, False):
        rows += section.rows()
    assert all(goal.value is not None for goal in targets(rows))
    llama, half, long = (32, 8), torch.bfloat16, (131072,)
    for case in ("saccade dense", "dense by triton", *gpu_methods.PREFILL):
        assert shapes["prefill 131072", case] == (long, long, llama, 128, half)
    for batch in (1, 8, 64):
        held = shapes[f"decode 131072 b={batch}", "saccade dense"]
        assert held == (long * batch, (1,) * batch, llama, 128, half)
    for case in gpu_methods.DECODE:
        assert shapes["decode 131072 b=1", case] == (long, (1,), llama, 128, half)
    two = (65536, 65536)
    assert shapes["published point", "moba(128, 8)"] == (two, two, (16, 16), 128, half)
