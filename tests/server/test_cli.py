"""The command line: exit statuses, one-line errors, and what each subcommand prints."""

from __future__ import annotations

import argparse
import io
import json
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest

from saccade import __version__
from saccade.engine.config import EngineConfig
from saccade.engine.errors import CapacityError, RequestError
from saccade.engine.outputs import CompletionOutput, RequestOutput, Timings
from saccade.engine.params import SamplingParams
from saccade.server import cli
from saccade.server.commands import bench
from saccade.server.options import ENGINE, SAMPLING, parse_size


def answer(*texts: str, finish: str | None = "stop", error: str | None = None) -> RequestOutput:
    outputs = [CompletionOutput(i, text, [7], finish) for i, text in enumerate(texts)]
    timings = Timings(ttft_s=0.25, total_s=0.5)
    return RequestOutput(
        "r0", "p", [1, 2], outputs, timings=timings, num_cached_tokens=1, error=error
    )


class StubEngine:
    """Stands for the engine: keeps what it was asked, answers with what the test gave."""

    made: list[StubEngine]
    reply: RequestOutput
    pieces: tuple[RequestOutput, ...]
    failure: BaseException | None

    def __init__(self, model: str, *, verbose: bool, **options: Any) -> None:
        self.model, self.verbose, self.options = model, verbose, options
        self.asked: list[tuple[str, SamplingParams]] = []
        self.closed = False
        type(self).made.append(self)

    def __enter__(self) -> StubEngine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.closed = True

    def generate(self, prompt: str, params: SamplingParams) -> list[RequestOutput]:
        self.asked.append((prompt, params))
        if self.failure is not None:
            raise self.failure
        return [self.reply]

    def stream(self, prompt: str, params: SamplingParams) -> Iterator[RequestOutput]:
        self.asked.append((prompt, params))
        yield from self.pieces


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> type[StubEngine]:
    class Fresh(StubEngine):
        made: list[StubEngine] = []  # noqa: RUF012 - one list per test
        reply = answer("hello")
        pieces = (answer("he", finish=None), answer("llo"))
        failure = None

    module = types.ModuleType("saccade.engine.engine")
    module.Engine = Fresh  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "saccade.engine.engine", module)
    return Fresh


def run(*argv: str) -> int:
    """Run the command line; argparse's own exits count as statuses."""
    try:
        return cli.main(argv)
    except SystemExit as stop:
        return int(stop.code or 0)


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr, with nothing on stdout."""
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    return lines[0]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"saccade {__version__}\n"


@pytest.mark.parametrize("argv", [[], ["no-such-command"], ["bench"], ["generate"]])
def test_usage_errors_exit_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*argv) == 2
    assert "usage: saccade" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("--port", "70000"), "--port must be from 0 to 65535"),
        (("--host", ""), "--host must not be empty"),
        (("--api-key", ""), "--api-key must not be empty"),
        (("--api-key", "a\nb"), "without control characters"),
        (("--api-key-file", "/nowhere"), "--api-key-file"),
        (("--ssl-keyfile", __file__), "need --ssl-certfile"),
        (("--ssl-certfile", "/nowhere"), "--ssl-certfile: no such file"),
        (("--ssl-certfile", __file__), f"--ssl-certfile {__file__} without --ssl-keyfile: no cert"),
        (("--ssl-certfile", __file__, "--ssl-keyfile", __file__), f"--ssl-keyfile {__file__}: no"),
        (("--cors-origin", "foo"), "--cors-origin must be like https://app.example"),
        (("--cors-origin", "https://app.example/"), "no path), or *, not 'https://app.example/'"),
        (("--cors-origin", "https://App.example"), "not 'https://App.example'"),
        (("--max-body-size", "many"), "'many' is not a size"),
        (("--max-bodies-size", "0"), "--max-bodies-size must be above 0"),
        (("--max-queued-requests", "0"), "--max-queued-requests must be above 0"),
        (("--drain-timeout", "nan"), "--drain-timeout must be above 0"),
        (("--page-size", "5"), "page_size must be one of"),
        (("--chat-template", "/nowhere"), "--chat-template"),
        (("--served-model-name", ""), "--served-model-name"),
        (("--host", "256.0.0.1", "--port", "0"), "cannot listen on 256.0.0.1:0"),
    ],
)
def test_serve_refuses_what_cannot_be(
    capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], words: str
) -> None:
    assert run("serve", "demo", *argv) == 2
    assert words in error_line(capsys)


def test_generate_prints_text_and_figures(
    stub: type[StubEngine], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("generate", "demo", "--prompt", "hi", "--max-tokens", "3") == 0
    captured = capsys.readouterr()
    assert captured.out == "hello\n"
    assert "2 prompt tokens, 1 of them cached, first token 0.25 s, total 0.50 s" in captured.err
    (engine,) = stub.made
    assert (engine.model, engine.verbose, engine.options) == ("demo", True, {})
    assert engine.closed
    assert engine.asked == [("hi", SamplingParams(max_tokens=3))]


def test_generate_passes_every_option(stub: type[StubEngine]) -> None:
    argv = ["generate", "folder", "-q", "-p", "hi", "--n", "2", "--top-k", "4", "--top-p", "0.5"]
    argv += ["--min-p", "0.1", "--seed", "9", "--stop", "a", "--stop", "b", "--ignore-eos"]
    argv += ["--stop-token-ids", "3", "--logprobs", "1", "--temperature", "0.5"]
    argv += [
        "--attention",
        "dense",
        "--prefill-attention",
        "chunked",
        "--decode-attention",
        "dense",
    ]
    argv += ["--dtype", "float32", "--device", "cpu", "--max-model-len", "64"]
    argv += ["--max-num-seqs", "2", "--max-num-batched-tokens", "32", "--kv-cache-memory", "1MiB"]
    stub.reply = answer("one", "two")
    assert run(*argv) == 0
    (engine,) = stub.made
    assert engine.asked[0][1] == SamplingParams(
        n=2, top_k=4, top_p=0.5, min_p=0.1, seed=9, stop=("a", "b"), ignore_eos=True,
        stop_token_ids=(3,), logprobs=1, temperature=0.5,
    )  # fmt: skip
    assert engine.options == {
        "attention": "dense", "prefill_attention": "chunked", "decode_attention": "dense",
        "dtype": "float32", "device": "cpu", "max_model_len": 64, "max_num_seqs": 2,
        "max_num_batched_tokens": 32, "kv_cache_memory": 2**20,
    }  # fmt: skip


def test_sampling_options_are_fields_of_sampling_params() -> None:
    fields = set(SamplingParams.__dataclass_fields__)
    assert {option[2:].replace("-", "_") for option in SAMPLING} <= fields


def test_engine_options_are_keywords_of_the_engine() -> None:
    fields = set(EngineConfig.__dataclass_fields__)
    assert {option[2:].replace("-", "_") for option in ENGINE} <= fields


def test_several_completions_are_numbered(
    stub: type[StubEngine], capsys: pytest.CaptureFixture[str]
) -> None:
    stub.reply = answer("one", "two")
    assert run("generate", "demo", "-q", "-p", "hi", "--n", "2") == 0
    expected = "--- completion 1 ---\none\n--- completion 2 ---\ntwo\n"
    assert capsys.readouterr().out == expected


def test_prompt_from_a_file(stub: type[StubEngine], tmp_path: Any) -> None:
    path = tmp_path / "prompt.txt"
    path.write_text("naïve\n", encoding="utf-8")
    assert run("generate", "demo", "-q", "-f", str(path)) == 0
    assert stub.made[0].asked[0][0] == "naïve\n"


def test_prompt_from_standard_input(
    stub: type[StubEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"from a pipe")))
    assert run("generate", "demo", "-q") == 0
    assert stub.made[0].asked[0][0] == "from a pipe"


def test_an_unreadable_prompt_is_a_usage_error(
    stub: type[StubEngine], tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("generate", "demo", "-f", str(tmp_path / "none")) == 2
    assert "cannot read the prompt" in error_line(capsys)
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    assert run("generate", "demo", "-f", str(tmp_path / "latin")) == 2
    assert "not UTF-8" in error_line(capsys)
    assert stub.made == []


def test_streaming(stub: type[StubEngine], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("generate", "demo", "-p", "hi", "--stream") == 0
    captured = capsys.readouterr()
    assert captured.out == "hello\n"
    assert "2 prompt tokens" in captured.err


def test_json_is_one_object(stub: type[StubEngine], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("generate", "demo", "-p", "hi", "--json") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["outputs"][0]["text"] == "hello"
    assert captured.err == ""
    assert not stub.made[0].verbose


def test_json_stream_is_one_object_per_line(
    stub: type[StubEngine], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("generate", "demo", "-p", "hi", "--json", "--stream") == 0
    pieces = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [piece["outputs"][0]["text"] for piece in pieces] == ["he", "llo"]


def test_a_stream_shows_one_completion(
    stub: type[StubEngine], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("generate", "demo", "-p", "hi", "--stream", "--n", "2") == 2
    assert "--no-stream" in error_line(capsys)


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--top-p", "nan", "top_p must be finite"),
        ("--temperature", "-1", "temperature must be"),
        ("--max-tokens", "0", "max_tokens must be"),
        ("--kv-cache-memory", "much", "is not a size"),
    ],
)
def test_bad_values_exit_2_before_a_model_is_loaded(
    option: str,
    value: str,
    words: str,
    stub: type[StubEngine],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("generate", "demo", "-p", "hi", option, value) == 2
    assert words in error_line(capsys)
    assert stub.made == []


@pytest.mark.parametrize(
    ("failure", "status", "words"),
    [
        (RequestError("prompt is too long", "prompt"), 2, "prompt is too long"),
        (CapacityError("needs 3 GiB, has 1 GiB"), 1, "needs 3 GiB, has 1 GiB"),
        (RuntimeError("odd\nthings"), 1, "RuntimeError: odd things"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_failures_are_one_line(
    failure: BaseException,
    status: int,
    words: str,
    stub: type[StubEngine],
    capsys: pytest.CaptureFixture[str],
) -> None:
    stub.failure = failure
    assert run("generate", "demo", "-p", "hi") == status
    assert words in error_line(capsys)
    assert stub.made[0].closed


def test_debug_shows_the_traceback(stub: type[StubEngine]) -> None:
    stub.failure = RuntimeError("odd")
    with pytest.raises(RuntimeError, match="odd"):
        run("--debug", "generate", "demo", "-p", "hi")


def test_a_failed_request_exits_1(
    stub: type[StubEngine], capsys: pytest.CaptureFixture[str]
) -> None:
    stub.reply = answer("part", finish="error", error="the step failed")
    assert run("generate", "demo", "-p", "hi") == 1
    assert "the request failed: the step failed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1000", 1000),
        ("4GiB", 4 * 2**30),
        ("1.5 kib", 1536),
        ("2GB", 2 * 10**9),
        ("7b", 7),
        ("1TiB", 2**40),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "4XB", "1e3", "4 GiB!", "nan", "iB", "3iB"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


@pytest.mark.parametrize("name", bench.BENCHMARKS)
def test_bench_hands_all_options_on(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    module = types.SimpleNamespace(main=lambda argv: seen.append(argv))
    monkeypatch.setattr(bench, "import_module", lambda *where: module)
    assert run("bench", name, "--json", "x.json", "-h", "y") == 0
    assert seen == [["--json", "x.json", "-h", "y"]]


def test_methods_lists_what_works(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("methods") == 0
    text = capsys.readouterr().out
    for name in ("dense", "window", "chunked"):
        assert name in text
    assert run("methods", "--json") == 0
    assert {"dense", "window", "chunked"} <= {
        m["name"] for m in json.loads(capsys.readouterr().out)
    }


def test_every_command_has_help() -> None:
    parser = cli.build_parser()
    (actions,) = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    names = "generate look calibrate doctor methods bench serve"
    assert set(actions.choices) == set(names.split())
    assert all(action.help for action in actions._choices_actions)
