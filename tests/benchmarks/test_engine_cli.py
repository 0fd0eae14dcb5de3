"""`saccade bench engine` on a tiny model, beside transformers where it is installed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from saccade.benchmarks import engine, engine_subjects
from saccade.benchmarks.llama_checkpoint import LlamaSize, write_llama
from saccade.engine.engine import Engine
from saccade.engine.errors import RequestError
from saccade.engine.params import SamplingParams

QUICK = "--quick --contexts 40,96 --decode-tokens 3 --repeats 2 --threads 1".split()


def test_the_command_writes_table_json_and_plot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("transformers")
    assert engine.main([*QUICK, "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "memory floor" in out and "not measured" in out and "random weights" in out
    assert (tmp_path / "engine.txt").read_text() == out
    assert (tmp_path / "engine.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((tmp_path / "engine.json").read_text())
    rows = found["rows"]
    assert [(row["context"], row["ours"]) for row in rows] == [
        (40, True),
        (40, False),
        (96, True),
        (96, False),
    ]
    assert all(row["prefill"]["value"] > 0 and row["decode"]["value"] > 0 for row in rows)
    assert all(row["same_tokens"] >= 1 for row in rows if row["ours"])


def test_without_transformers_the_table_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engine_subjects, "find_spec", lambda name: None)
    assert engine.main([*QUICK, "--repeats", "1"]) == 0
    out = capsys.readouterr().out
    assert "it is not installed" in out
    assert "saccade" in out


def test_unusable_options_are_refused() -> None:
    with pytest.raises(RequestError, match="contexts"):
        engine.main(["--contexts", "1024,many"])
    with pytest.raises(RequestError, match="--peer-from must be two contexts shorter than 256"):
        engine.main(["--quick", "--peer-from", "64,256"])
    with pytest.raises(RequestError, match="exceed the model's 4096 positions"):
        engine.main(["--quick", "--contexts", "4096"])


def test_the_time_of_the_first_step_is_prefill_and_not_queueing(tmp_path: Path) -> None:
    params = SamplingParams(max_tokens=2, temperature=0.0, ignore_eos=True, detokenize=False)
    with Engine(write_llama(tmp_path, LlamaSize.tiny()), max_num_seqs=1) as made:
        timings = made.generate([list(range(500))], params)[0].timings
    assert timings.ttft_s is not None and timings.prefill_s is not None
    assert timings.prefill_s > 0.5 * timings.ttft_s


def test_sparse_beside_dense_and_an_extrapolated_peer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")
    options = "--quick --contexts 600 --peer-max-context 256 --peer-from 64,128 --decode-tokens 2"
    more = "--repeats 1 --threads 1 --beside-dense --minutes 1".split()
    sparse = ["--prefill-attention", "moba(block=128, topk=2)"]
    sparse += ["--decode-attention", "quest(budget=256)"]
    path = tmp_path / "found.json"
    assert engine.main([*options.split(), *more, *sparse, "--json", str(path)]) == 0
    captured = capsys.readouterr()
    assert "attention moba(block=128, topk=2) then quest(budget=256)" in captured.out
    assert "transformers (extrapolated)" in captured.out and "saccade, dense" in captured.out
    assert "a round of saccade may take" in captured.err
    rows = json.loads(path.read_text())["rows"]
    assert [row["implementation"] for row in rows] == ["saccade", "saccade, dense", "transformers"]
    assert rows[0]["prefill_dense"] > 0 and rows[0]["decode_ratio"] > 0
    assert rows[2]["extrapolated"] == [64, 128]
