"""The GPU check: without a GPU it says so; its dry run goes through all of it at toy size."""

from __future__ import annotations

import json

import pytest
import torch

from saccade.benchmarks import gpu_check, gpu_step
from saccade.benchmarks.gpu_methods import TINY
from saccade.benchmarks.gpu_report import plot
from saccade.benchmarks.gpu_rows import NOT_MEASURED, Row
from saccade.benchmarks.gpu_sanitizer import judged


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
    document = json.loads((tmp_path / "gpu_check.json").read_text())
    rows = document["rows"]
    assert all(row["milliseconds"] is None and not row["failed"] for row in rows)
    sections = {row["section"] for row in rows}
    assert sections == {
        *("ceilings", "correctness", "ops", "engine", "prefill 24", "decode 24 b=1"),
        *("decode 24 b=2", "select", "sanitizer", "published point", "engine step 24"),
    }
    checked = {row["case"] for row in rows if row["result"].startswith("error")}
    paged = ("key_bounds", "select_bounded", "select_blocks", "compressed", "write_pages")
    far = ("select_pooled", "key_moments full", "far_mass blocks", "scale_first")
    kept = ("keep_above", "keep_best", "keep_top", "attend_turns", "project_chosen", "add_chosen")
    layers = ("experts silu", "experts swiglu", "gated_delta", "key_conv")
    names = ("lists of 2", "norm", *paged, "select_keys", "correct", *far, *kept, *layers)
    for name in names:
        assert f"triton {name} float16" in checked
    assert any(row["result"] == "2 tokens equal" for row in rows)
    ran = {row["case"] for row in rows if row["note"] == "dry run"}
    assert {"saccade dense", "dense by triton", *TINY, "torch SDPA FLASH_ATTENTION"} <= ran
    assert {"16 of 64 scores", "read", "dense, greedy", *gpu_step.TINY.methods} <= ran
    missing = {row["case"]: row["note"] for row in rows if row["result"] == NOT_MEASURED}
    assert missing["dense by cudnn"] == "tensor on cpu"
    table = (tmp_path / "gpu_check.md").read_text()
    assert "no figure in it is a measurement" in table
    assert 0 < table.index("| target |") < table.index("| section |")
    assert document["targets"] and all(each["met"] is None for each in document["targets"])
    assert all(each["value"] is None for each in document["targets"])
    assert "target: dense prefill of 128K tokens, as dispatched" in capsys.readouterr().out
    assert not (tmp_path / "gpu_check.svg").exists()  # nothing was timed


def test_a_failing_section_is_a_row():
    """It names the reason, and the others go on."""

    def fails():
        yield Row("x", "first", "fine")
        raise RuntimeError("out of memory\nmore")

    found = list(gpu_check.guarded("x", fails, 60))
    assert [row.failed for row in found] == [False, True]
    assert found[1].result == NOT_MEASURED and found[1].note == "RuntimeError: out of memory"


def test_a_section_has_its_time():
    """What does not fit is said not to be measured."""
    found = list(gpu_check.guarded("x", lambda: iter([Row("x", "first", "fine")]), -1))
    assert [row.result for row in found] == [NOT_MEASURED] and "too little time" in found[0].note
    found = list(gpu_check.guarded("x", lambda: iter([Row("x", "first", "fine")] * 9), 60))
    assert len(found) == 9


def test_the_targets_have_their_time():
    """All that is before them may take its share; what cannot be cut short does not begin late."""
    made = list(gpu_check.sections(False, False))
    names = [each.name for each in made]
    last = names.index("engine step 131072")
    assert sum(each.seconds for each in made[: last + 1]) < gpu_check.LIMIT_S - 60
    assert [each.name for each in made if each.least] == ["engine step 131072", "sanitizer"]
    assert gpu_step.REQUEST_SECONDS <= made[last].least <= made[last].seconds
    assert not any("131072" in each.name for each in gpu_check.sections(False, True))


def test_what_the_sanitizer_says():
    text = "========= Invalid __global__ read of size 4\n========= ERROR SUMMARY: 2 errors\n"
    row = judged("memcheck", text)
    assert row.failed and row.result == "2 found" and "Invalid" in row.note
    assert not judged("racecheck", "========= RACECHECK SUMMARY: 0 hazards displayed").failed
    refused = judged("memcheck", "Device not supported\n")
    assert refused.result == NOT_MEASURED and refused.note == "Device not supported"


def test_plots(tmp_path):
    """A panel for each section."""
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    row = Row("prefill 8", "moba", "12.0000 ms", "", 12.0)
    rows = [row, row, Row("decode 8", "dense", "1 ms", "", 1.0)]
    plot(tmp_path / "plot.svg", rows)
    assert (tmp_path / "plot.svg").stat().st_size > 1000
