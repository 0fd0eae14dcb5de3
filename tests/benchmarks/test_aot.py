"""Triton kernels compile ahead of time and pass their gates; without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from saccade.benchmarks.aot import complaints, main
from saccade.benchmarks.aot_compile import Resources

RECORDED = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "aot.json"
needs_triton = pytest.importorskip("triton", reason="triton is not installed")


def compile_cases(*arguments: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: here kernels are interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "saccade.benchmarks.aot", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_quick_cases_pass_on_hopper(tmp_path):
    """No spills, shared memory that fits, tensor cores, for sm_90: prefill by HGMMA."""
    ran = compile_cases("--only", "_quick", "--arch", "90", "--out", str(tmp_path))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    rows = (tmp_path / "aot.md").read_text().splitlines()
    prefill = [row for row in rows if "attend/prefill_d128_quick | attend_tiles" in row]
    assert any("HGMMA" in row and "UTMALDG" in row for row in prefill)
    # Three buffers of K and of V, 64 keys of 128 channels each, beside the query tile and barriers.
    assert any("129.0 | 8/3" in row for row in prefill)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["80", "90", "100"])
def test_every_case_passes(arch):
    """What the committed table does not know is compiled: all of it takes half an hour."""
    ran = compile_cases("--arch", arch, "--known", str(RECORDED))
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_what_is_known_is_judged_and_not_compiled(tmp_path):
    """By digest: a result that is of another variant does not count."""
    known = tmp_path / "aot.json"
    case = ("--only", "key_conv/one_row", "--arch", "90")
    assert compile_cases(*case, "--out", str(tmp_path)).returncode == 0
    first = json.loads(known.read_text())
    spilt = json.loads(known.read_text())
    spilt["rows"][0]["used"]["stack"] = 8
    known.write_text(json.dumps(spilt))
    ran = compile_cases(*case, "--known", str(known))
    assert ran.returncode == 1 and "spills: 8 bytes" in ran.stdout
    spilt["rows"][0]["digest"] = "of another"
    known.write_text(json.dumps(spilt))
    assert compile_cases(*case, "--known", str(known), "--out", str(tmp_path)).returncode == 0
    assert json.loads(known.read_text()) == first


def test_gates():
    """Each gate says what is wrong."""
    good = Resources(128, 0, 100 << 10, 8, 3, {"HGMMA": 8})
    assert complaints("attend/x", "attend_tiles", "90", good) == []
    for used, word in (
        (Resources(255, 8, 0, 8, 3, {"HGMMA": 8}), "spills"),
        (Resources(255, 0, 0, 8, 3, {"HGMMA": 8, "STL": 1}), "spills"),
        (Resources(255, 0, 228 << 10, 8, 3, {"HGMMA": 8}), "shared memory"),
        (Resources(255, 0, 0, 8, 3, {}), "tensor-core"),
    ):
        found = complaints("attend/x", "attend_tiles", "90", used)
        assert len(found) == 1 and word in found[0]
    assert complaints("attend/prefill_d64", "attend_tiles", "90", good) == ["no bulk copies"]


def test_interpreted_kernels_are_not_compiled(monkeypatch, capsys):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert main(["--only", "quick"]) == 2
    assert "TRITON_INTERPRET" in capsys.readouterr().err
