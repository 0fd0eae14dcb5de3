"""The rows of attention methods: what they run, what they report, and which goals they reach."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from saccade.benchmarks import kernels, method_cases, method_layers, method_rows
from saccade.benchmarks.cases import Sizes
from saccade.benchmarks.goals import method_goals
from saccade.benchmarks.method_rows import MethodRow
from saccade.benchmarks.op_times import op_times
from saccade.engine.attention.parse import parse_method
from saccade.engine.errors import RequestError
from saccade.kernels.ops import Op

TINY = replace(Sizes.quick(), method_prefill=1024, method_decode=1536, cold=1 << 20)
ROW = MethodRow("moba(block=128, topk=8)", "prefill", 32768, 1.0, 0.0, 7.0, 0.0, 0.06, 0.2)


def test_ops_are_timed_by_name_and_left_as_they_were() -> None:
    call, op = Op.__call__, Op("double", lambda x: 2 * x)
    with op_times() as spent:
        assert op(4) == 8
    assert list(spent) == ["double"] and spent["double"] > 0
    assert Op.__call__ is call
    with pytest.raises(ZeroDivisionError), op_times():
        raise ZeroDivisionError
    assert Op.__call__ is call


@pytest.mark.parametrize("phase", method_cases.PHASES)
def test_rows_of_one_sequence_are_those_of_the_whole(phase: str) -> None:
    """A method's last row alone, as decode runs it, is the last row of its prefill."""
    spec = "moba(block=128, topk=2)"
    with torch.inference_mode():
        memory = method_layers.Memory(500, 2, [spec])
        q = torch.randn(500, method_layers.HEADS, method_layers.DIM).bfloat16()
        whole = memory.subject(spec, 1, 0, q)()
        assert torch.equal(memory.subject(spec, 1, 499, q[499:])(), whole[499:])
        assert not torch.equal(memory.subject(spec, 0, 0, q)(), whole)  # another sequence's keys


def test_the_share_of_keys() -> None:
    spec, sizes = "moba(block=128, topk=2)", replace(TINY, method_decode=512 + method_layers.SHORT)
    cases = [method_cases.MethodCase(each, "decode") for each in (spec, "dense")]
    problem = method_cases.decode(sizes, cases)
    assert problem.share(spec) == 0.5 and problem.share("dense") == 1


def test_every_method_is_measured_in_its_phase() -> None:
    told: list[str] = []
    with torch.inference_mode():
        rows = method_rows.measure(TINY, 2, told.append)
    assert next(row.spec for row in rows if row.phase == "prefill") == "dense"
    wanted = {(case.spec, case.phase) for phase in ("prefill", "decode")
              for case in method_cases.cases(phase)}  # fmt: skip
    assert {(row.spec, row.phase) for row in rows if row.spec != "dense"} == wanted
    assert all(row.ratio == 1 for row in rows if row.spec == "dense")
    assert all(row.seconds > 0 and 0 <= row.choosing < 1 for row in rows)
    # In a short text most keys of NSA's window lie in its blocks too, and are read twice.
    assert all(0 < row.keys <= (2 if row.spec == method_cases.NSA else 1) for row in rows)
    assert len(told) == 2
    assert all(row.spec in method_rows.table(rows).plain() for row in rows)


def test_cases_are_specs_that_mean_something() -> None:
    for phase in method_cases.PHASES:
        for case in method_cases.cases(phase):
            assert parse_method(case.spec)


def test_goals() -> None:
    assert all(goal.met is None for goal in method_goals([]))
    slow = replace(ROW, spec="moba(block=512, topk=8)", ratio=2.0, choosing=0.3)
    short = replace(ROW, spec="delta(window=2048, sinks=64, gamma=64)", tokens=4096)
    dense = replace(ROW, spec="dense", choosing=0.9)
    goals = method_goals([ROW, slow, short, dense])
    assert [goal.met for goal in goals[:3]] == [True, False, None]
    assert goals[-1].value == 0.3 and goals[-1].met is False
    decode = replace(ROW, phase="decode", tokens=65536 - method_layers.SHORT, ratio=9.0)
    assert next(goal.met for goal in method_goals([decode]) if "64K" in goal.name)


def test_the_command_has_them_under_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(Sizes, "quick", lambda: TINY)
    arguments = ["--quick", "--repeats", "2", "--threads", "1", "--only", "methods"]
    assert kernels.main([*arguments, "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "Methods beside dense" in out and "moba(block=128, topk=8)" in out
    assert "causal prefill bf16" not in out  # those goals belong to the ops
    found = json.loads((tmp_path / "kernels.json").read_text())
    assert found["rows"] == []
    assert {row["phase"] for row in found["methods"]} == {"prefill", "decode"}
    assert (tmp_path / "kernels.png").read_bytes().startswith(b"\x89PNG")


def test_sections() -> None:
    def of(*arguments: str) -> set[str]:
        return kernels.sections(kernels.parser().parse_args(list(arguments)))

    assert of() == {"ops", "methods"}
    assert of("--op", "merge") == of("--only", "ops") == {"ops"}
    assert of("--only", "ops,methods") == {"ops", "methods"}
    with pytest.raises(RequestError, match="'gpu' is unknown; choose ops or methods"):
        of("--only", "gpu")
