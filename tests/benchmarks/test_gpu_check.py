"""The GPU check: without a GPU it says so; its dry run goes through all of it at toy size."""

from __future__ import annotations

import json

import pytest
import torch

from saccade.benchmarks import gpu_check
from saccade.benchmarks.gpu_rows import NOT_MEASURED, Row


def test_no_gpu(capsys):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert gpu_check.main([]) == 2
    assert "no GPU: torch" in capsys.readouterr().err


@pytest.mark.filterwarnings(
    "ignore:invalid value", "ignore:divide by zero", "ignore:Conversion of an array"
)
def test_dry_run(interpreted, tmp_path, capsys):
    """Every section runs, every figure of time says that it is none."""
    assert gpu_check.main(["--interpret", "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "gpu_check.json").read_text())["rows"]
    sections = {row["section"] for row in rows}
    assert {"ceilings", "correctness", "engine", "prefill 24", "decode 24 b=1"} <= sections
    assert all(row["milliseconds"] is None for row in rows)
    checked = [row for row in rows if row["result"].startswith("error")]
    assert {row["case"].split()[0] for row in checked} >= {"triton"}
    assert any(row["result"] == "2 tokens equal" for row in rows)
    assert "no figure in it is a measurement" in (tmp_path / "gpu_check.md").read_text()


def test_a_failing_section_is_a_row():
    """It names the reason, and the others go on."""

    def fails():
        yield Row("x", "first", "fine")
        raise RuntimeError("out of memory\nmore")

    found = gpu_check.guarded("x", fails)
    assert [row.failed for row in found] == [False, True]
    assert found[1].result == NOT_MEASURED and found[1].note == "RuntimeError: out of memory"
