"""`saccade bench kernels`: each case computes what its peers compute; the command writes it."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path

import pytest
import torch

from saccade.benchmarks import attend_cases, kernels, plots, row_cases, scratch
from saccade.benchmarks.cases import Candidate, Case, Problem, Sizes, disagreement
from saccade.benchmarks.roofline import Work
from saccade.engine.errors import RequestError

TINY = Sizes(
    prefill=(80,),
    window=24,
    chunk=17,
    decode_context=130,
    decode_batches=(1, 3),
    linear_rows=(1, 20),
    linear_shapes=((64, 96),),
    rows=70,
    cold=1 << 16,
    matmul=64,
)
CASES = list(chain(attend_cases.cases(TINY), row_cases.cases(TINY)))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label.replace(" ", "-"))
def test_every_case_agrees_with_its_peers(case: Case) -> None:
    problem = case.build()
    with torch.inference_mode():
        assert disagreement(problem, case.dtype) == {}
    assert problem.peers and problem.work.bytes > 0
    assert problem.bound in ("", "matmul", "stream")


def test_a_wrong_kernel_is_found() -> None:
    def made(value: float) -> Candidate:
        return Candidate(str(value), lambda: torch.tensor([1.0, value]), lambda out: out)

    problem = Problem(made(2.0), [made(2.0), made(2.5), made(float("nan"))], Work(), "")
    assert list(disagreement(problem, torch.float32)) == ["2.5", "nan"]


def test_the_command_writes_table_json_and_plot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    arguments = ["--quick", "--repeats", "2", "--threads", "1", "--op", "rms_norm,merge,chunk"]
    assert kernels.main([*arguments, "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "rms_norm" in out and "attend chunk" in out and "not measured" in out
    assert (tmp_path / "out" / "kernels.txt").read_text() == out
    assert (tmp_path / "out" / "kernels.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((tmp_path / "out" / "kernels.json").read_text())
    assert {row["op"] for row in found["rows"]} == {"rms_norm", "merge", "attend"}
    assert all(row["seconds"] > 0 and row["wrong"] == "" for row in found["rows"])
    assert all((row["ratio"] is not None) == row["ours"] for row in found["rows"])
    assert found["machine"]["isa"] and found["ceilings"]["stream"] > 0


def test_unusable_options_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RequestError, match=r"conv2d.*is unknown"):
        kernels.main(["--quick", "--op", "conv2d"])
    monkeypatch.setattr(plots, "find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"saccade\[bench\]"):
        kernels.main(["--quick", "--plot", "x.png"])
    with pytest.raises(SystemExit):
        kernels.main(["--repeats", "0"])
    assert "positive integer" in capsys.readouterr().err


def test_without_matplotlib_a_folder_has_no_plot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "find_spec", lambda name: None)
    arguments = ["--quick", "--repeats", "1", "--op", "merge", "--out", str(tmp_path)]
    assert kernels.main(arguments) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kernels.json", "kernels.txt"]


def test_cases_are_chosen_by_op_or_name() -> None:
    names = {case.name for case in kernels.selected(TINY, ["decode", "attend.window"])}
    assert names == {"decode", "window"}
    assert kernels.selected(TINY, ["scratch"]) == []
    assert len(kernels.selected(TINY, [])) == len(CASES)


def test_scratch_is_small() -> None:
    found = scratch.scratch_bytes(256)
    if found is None:
        pytest.skip("this system has no resettable peak of resident memory")
    assert 0 <= found < 64 << 20
