"""`saccade doctor`: every part is a finding with a reason, and a broken part never ends it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from saccade.server import cli, machine
from saccade.server.machine import Finding
from saccade.server.tables import plain_lines


def names(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def test_plain_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    text = capsys.readouterr().out
    for part in ("python", "cpu flags", "torch", "compiled module", "triton", "cupy", "CUDA GPU"):
        assert part in text
    assert "\x1b" not in text


def test_json_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    states = {finding["state"] for finding in report["findings"]}
    assert states <= {"chosen", "found", "unusable", "missing", "broken"}
    assert all(finding["detail"] for finding in report["findings"])


def test_every_instruction_set_has_a_reason() -> None:
    from saccade.kernels import native

    found = names(machine.compiled_kernels())
    if native.module() is None:
        assert found["compiled module"].state in {"missing", "broken"}
        assert found["torch references"].state == "chosen"
        return
    assert set(native.ISAS) <= set(found)
    assert all(found[isa].detail for isa in native.ISAS)
    chosen = [finding.name for finding in found.values() if finding.state == "chosen"]
    assert chosen == [native.chosen_isa() or "torch references"]


def test_no_compiled_module(monkeypatch: pytest.MonkeyPatch) -> None:
    from saccade.kernels import native

    monkeypatch.setattr(native, "module", lambda: None)
    monkeypatch.setattr(native, "report", list)
    found = names(machine.compiled_kernels())
    assert found["compiled module"].state in {"missing", "broken"}
    assert found["torch references"].state == "chosen"


def test_a_failing_part_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    from saccade.kernels import native

    def fail() -> None:
        raise ValueError("SACCADE_ISA=amx: this processor has no AMX\nmore")

    monkeypatch.setattr(native, "report", fail)
    (finding,) = machine.compiled_kernels()
    assert finding.state == "broken"
    assert finding.detail == "ValueError: SACCADE_ISA=amx: this processor has no AMX"


def test_a_broken_torch_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert machine.torch_library()[0].state == "broken"
    assert machine.gpu()[0].state == "broken"


def test_gpus_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from saccade.kernels import gpu

    reasons = iter([None, "torch finds no CUDA GPU"])
    monkeypatch.setattr(gpu, "gpu_missing", lambda: next(reasons))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda index: "H200")
    found = names(machine.gpu())
    assert found["CUDA GPU"].state == "chosen" and found["CPU"].state == "found"
    assert "H200" in found["CUDA GPU"].detail
    found = names(machine.gpu())
    assert found["CUDA GPU"].state == "missing" and found["CPU"].state == "chosen"
    assert found["CUDA GPU"].detail == "torch finds no CUDA GPU"


def test_optional_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.optional_library("x", "no_such_module_anywhere").state == "missing"
    assert machine.optional_library("pytest", "pytest").state == "found"
    assert "unknown version" in machine.optional_library("no-such-name", "json").detail


def test_processor_and_memory_files(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("model name : X\nflags : avx2 fma\n\nmodel name : Y\n")
    assert machine.cpu_info(tmp_path / "cpuinfo") == {"model name": "X", "flags": "avx2 fma"}
    assert machine.cpu_info(tmp_path / "none") == {}
    (tmp_path / "meminfo").write_text("MemTotal: 2097152 kB\nMemAvailable: 1048576 kB\n")
    expected = "2.0 GiB, 1.0 GiB of them available"
    assert machine.memory(tmp_path / "meminfo") == expected
    (tmp_path / "odd").write_text("MemTotal: many\n")
    assert machine.memory(tmp_path / "odd") == "unknown"
    assert machine.memory(tmp_path / "none") == "unknown"


def test_plain_tables_align() -> None:
    lines = plain_lines("T", ("a", "b"), [("long", "x"), ("s", "y")])
    assert lines == ["T", "a     b", "long  x", "s     y"]


def test_rich_tables_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from saccade.server.tables import print_table

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    print_table("T", ("a", "b"), [("[x]", "y")])
    assert "[x]" in capsys.readouterr().out
