"""Tables and JSON of the benchmarks."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import pytest

from saccade.benchmarks import machine, report
from saccade.benchmarks.goals import Goal
from saccade.benchmarks.report import Table


def test_plain_tables_line_up() -> None:
    table = Table("Title", ("a", "long name"), [("x", "1"), ("longer", "2")], ["a note"])
    lines = table.plain().splitlines()
    assert lines == ["Title", "a       long name", "-" * 17, "x       1", "longer  2", "a note"]


def test_report_is_plain_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("Title", ("a",), [("x",)])
    report.show(["head"], [table])
    assert capsys.readouterr().out == report.plain(["head"], [table])
    assert "\x1b" not in report.plain(["head"], [table])


def test_report_is_rich_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    report.show(["head"], [Table("Title", ("a",), [("met",)], ["note"])])
    out = capsys.readouterr().out
    assert all(text in out for text in ("head", "Title", "met", "note"))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(2.5, "2.5 s"), (0.0123, "12.3 ms"), (4.56e-5, "45.6 us"), (7e-9, "7 ns")],
)
def test_durations(seconds: float, text: str) -> None:
    assert report.duration(seconds) == text


def test_json_holds_dataclasses(tmp_path: Path) -> None:
    path = tmp_path / "new" / "out.json"
    report.write_json(path, {"goal": Goal("name", 1.0, None), "machine": machine.describe()})
    found = json.loads(path.read_text())
    assert found["goal"]["met"] is None
    assert found["machine"]["cores"] >= 1
    with pytest.raises(TypeError, match="object is not JSON"):
        report.write_json(path, {"x": object()})


def test_machine_is_named_by_flags_and_not_by_host() -> None:
    line = machine.describe().line()
    assert platform.node() not in line or not platform.node()
    assert "core" in line and "flags:" in line
    head = report.head("title", machine.today(), machine.describe(), machine.versions())
    assert "torch" in head[2] and "saccade" in head[2] and "transformers" in head[2]


def test_goals_name_the_instruction_set() -> None:
    here = machine.describe()
    note = report.goal_table([Goal("g", 1.0, 2.0)], here).notes[0]
    assert here.isa in note
    assert ("without AMX" in note) == ("amx_bf16" not in here.flags)


def test_scratch_that_was_not_measured_says_so() -> None:
    assert "not measured" in report.scratch_table({}).plain()
    assert "not measured" in report.scratch_table({8192: None}).plain()
    assert "1.00 MiB" in report.scratch_table({8192: 1 << 20}).plain()
