"""`saccade bench serve`: its figures are right, and its modes run against a real server."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import h11
import pytest

from saccade.benchmarks import http_client, serve, serve_figures, serve_load
from saccade.benchmarks.http_client import Target
from saccade.benchmarks.serve_load import Outcome, Run
from saccade.engine.errors import RequestError

from .conftest import Serve
from .running import Running

# The names that people's scripts read out of `vllm bench serve`.
KEYS = {
    "completed", "num_prompts", "total_input_tokens", "total_output_tokens", "duration",
    "request_throughput", "output_throughput", "total_token_throughput",
    *(f"{kind}_{name}_ms" for kind in ("mean", "median", "std", "p90", "p99")
      for name in ("ttft", "tpot", "itl", "e2el")),
}  # fmt: skip


def test_figures_of_a_run() -> None:
    fine = Outcome(200, 0.0, 0.1, 0.4, [0.1, 0.2], 10, 3)
    slow = Outcome(200, 0.0, 1.0, 3.0, [1.0, 1.0], 20, 3)
    lost = Outcome(503, 0.0, error="overloaded")
    found = serve_figures.summary(Run([fine, slow, lost], 3.0, concurrency=2), 500.0, None)
    assert set(found) >= KEYS and found["completed"] == 2 and found["failed"] == 1
    assert found["request_throughput"] == pytest.approx(2 / 3)
    assert found["request_goodput"] == pytest.approx(1 / 3)
    assert (found["total_input_tokens"], found["total_output_tokens"]) == (30, 6)
    assert found["median_ttft_ms"] == pytest.approx(550)
    assert found["mean_tpot_ms"] == pytest.approx(575)  # (0.15 + 1) / 2
    assert found["mean_itl_ms"] == pytest.approx(575) and found["p50_itl_ms"] == 600
    assert found["errors"] == ["overloaded"]
    nothing = serve_figures.summary(Run([lost], 1.0, rate=2.0))
    assert nothing["completed"] == 0 and "mean_ttft_ms" not in nothing
    assert "2 a second" in serve_figures.latency_table([nothing]).plain() + serve_figures.setting(
        nothing
    )


def test_percentiles() -> None:
    assert [serve_figures.percentile([3, 1, 2], share) for share in (0, 50, 100)] == [1, 2, 3]
    assert serve_figures.percentile([1, 2], 90) == pytest.approx(1.9)


def test_addresses() -> None:
    assert Target.of("127.0.0.1:80").prefix == "" and Target.of("http://h/v1/").prefix == ""
    far = Target.of("https://h/api/v1")
    assert (far.host, far.port, far.prefix, far.tls) == ("h", 443, "/api", True)
    for wrong in ("ftp://h", "http://"):
        with pytest.raises(ValueError, match="address"):
            Target.of(wrong)


def measured(server: Running, folder: Path, *options: str) -> Any:
    """The JSON document of a quick run."""
    file = folder / "found.json"
    lengths = ("--input-tokens", "20", "--output-tokens", "8")
    argv = ["--url", f"{server.url}/v1", "--quick", *lengths, "--json", str(file), *options]
    assert serve.main(argv) == 0
    return json.loads(file.read_text())


def test_load(server: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = tmp_path / "plot.png"
    found = measured(server, tmp_path, "--concurrency", "1,4", "--plot", str(plot))
    first, second = found["runs"]
    for run in (first, second):
        assert run["completed"] == 16 and run["failed"] == 0
        assert run["total_input_tokens"] == 16 * 20 and run["total_output_tokens"] == 16 * 8
        assert 0 < run["p50_ttft_ms"] <= run["p99_ttft_ms"] < run["p99_e2el_ms"]
    assert "4 at once" in capsys.readouterr().out and plot.read_bytes()[1:4] == b"PNG"
    rate = measured(server, tmp_path, "--rate", "50", "--requests", "8", "--text")
    assert rate["completed"] == 8 and rate["request_rate"] == 50  # one run: at the top, as vLLM's


def test_short_requests_beside_a_long_one(server: Running, tmp_path: Path) -> None:
    found = measured(server, tmp_path, "--mode", "long", "--requests", "4")
    assert found["long_tokens"] == 512 - 64 and found["long_ttft_s"] > 0
    assert found["short"]["alone"]["completed"] == 4


def test_overhead(server: Running, tmp_path: Path) -> None:
    found = measured(
        server, tmp_path, "--mode", "overhead", "--rounds", "1", "--output-tokens", "460"
    )
    middle = found["median"]
    assert middle["steps"] > 10 and 0 < middle["step_s"] < 1 and middle["bare_step_s"] is None
    assert middle["served_itl_s"] > 0 and found["goals"][0]["target"] == 0.05


class Odd(BaseHTTPRequestHandler):
    """A server that goes wrong. good: completions before it does; models: its list of them."""

    protocol_version = "HTTP/1.1"
    good = 10**6
    models = b'{"data": [{"id": "odd"}]}'
    most = here = 0
    silent_s = 0.0  # after so long a completion's reply begins

    def do_GET(self) -> None:
        self.answer(self.models)

    def do_POST(self) -> None:
        kind = type(self)
        self.rfile.read(int(self.headers["content-length"]))
        kind.good, kind.here = kind.good - 1, kind.here + 1
        kind.most = max(kind.most, kind.here)
        if kind.good < 0:  # it dies: this one gets nothing, and nobody listens any more
            self.server.socket.close()
            self.close_connection = True
            return
        time.sleep(0.01 + self.silent_s)
        self.answer(b'data: {"choices": [{"text": "a"}]}\n\ndata: [DONE]\n\n')
        kind.here -= 1

    def answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def odd(**about: Any) -> Iterator[tuple[str, type[Odd]]]:
    """The address of such a server."""
    kind = type("OneOdd", (Odd,), about)
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as serving:
        threading.Thread(target=serving.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}", kind
        serving.shutdown()


def test_a_server_that_dies_costs_only_what_it_leaves(tmp_path: Path) -> None:
    file, plot = tmp_path / "found.json", tmp_path / "found.png"
    with odd(good=4 + 10) as (url, _):  # four warm it
        argv = ["--url", url, "--requests", "16", "--concurrency", "1", "--json", str(file)]
        assert serve.main(argv) == 0
    found = json.loads(file.read_text())
    assert (found["completed"], found["failed"]) == (10, 6) and found["p50_ttft_ms"] > 0
    errors = "".join(found["errors"])
    assert "the connection broke before a reply" in errors and "no connection" in errors
    with odd(good=0) as (url, _):
        argv = ["--url", url, "--requests", "3", "--json", str(file), "--plot", str(plot)]
        assert serve.main(argv) == 1  # nothing was measured
    assert json.loads(file.read_text())["failed"] == 3


def test_a_rate_may_have_a_bound(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    with odd() as (url, kind):
        argv = ["--url", url, "--requests", "40", "--rate", "2000", "--json", str(file)]
        assert serve.main([*argv, "--concurrency", "3"]) == 0
        assert kind.most <= 3
        found = json.loads(file.read_text())
        assert (found["request_rate"], found["max_concurrency"]) == (2000, 3)
        assert found["completed"] == 40
        with pytest.raises(RequestError, match="one number"):
            serve.main([*argv, "--concurrency", "3,4"])


@pytest.mark.parametrize("models", [b"<html>", b"[]", b"{}", b'{"data": []}', b'{"data": [1]}'])
def test_what_is_no_such_server_is_named(models: bytes) -> None:
    with odd(models=models) as (url, _), pytest.raises(RequestError) as caught:
        serve.main(["--url", url])
    assert f"{url}/v1/models is no list of models" in str(caught.value)


def test_a_server_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client.ask, "__defaults__", (None, None, 0.2))
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"http://127.0.0.1:{mute.getsockname()[1]}"
        with pytest.raises(RequestError, match=f"{url}/v1/models does not answer"):
            serve.main(["--url", url])

        async def late() -> bool:
            exchange = await http_client.send(Target.of(url), "/")
            return await serve_load.wait_end(exchange, 0.05)

        assert asyncio.run(late()) is False


def test_a_request_is_not_awaited_for_ever(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    with odd(silent_s=0.8) as (url, _):
        argv = ["--url", url, "--timeout", "0.1", "--requests", "2", "--json", str(file)]
        assert serve.main(argv) == 1
    assert json.loads(file.read_text())["errors"] == ["no end within 0.1 s"]


def test_what_comes_is_judged() -> None:
    def of(reply: bytes) -> Outcome:
        async def read() -> Outcome:
            exchange = http_client.Exchange(
                h11.Request(method="GET", target="/", headers=[("host", "x")]), b""
            )
            exchange.parts.append((1.0, reply))
            return serve_load.outcome(exchange)

        return asyncio.run(read())

    head = b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n"
    assert of(head % (503, 0)).error == "status 503"
    assert of(b"").error == "the connection broke before a reply"
    piece = b'data: {"choices": [{"text": "a"}]}\n\n'
    assert of(head % (200, len(piece)) + piece).error == "the stream ended without [DONE]"
    assert of(head % (200, len(piece) + 14) + piece + b"data: [DONE]\n\n").ok
    for odd_event in (b"data: {\n\n", b"data: 5\n\n"):
        assert "no stream of completions" in of(head % (200, len(odd_event)) + odd_event).error


def test_options_of_the_server_may_be_one_word(monkeypatch: pytest.MonkeyPatch) -> None:
    assert serve.whole_values(["--serve-args", "--x", "--quick"]) == ["--serve-args=--x", "--quick"]
    seen: list[Any] = []
    monkeypatch.setattr(serve, "measure", lambda args, mode: seen.append(args.serve_args) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        serve.main(["--serve-args", "--check-finite"])
    assert seen == ["--check-finite"]


@pytest.mark.parametrize("value", ["nan", "inf", "0", "-1", "soon"])
def test_a_goodput_needs_a_time(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--goodput-ttft-ms", "--goodput-itl-ms"):
        with pytest.raises(SystemExit):
            serve.main([f"{option}={value}"])
        assert "must be a positive number" in capsys.readouterr().err


@pytest.mark.slow
def test_every_mode_with_servers_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The demo model, and one with random weights and room for the long prompt."""
    argv = ["--mode", "all", "--quick", "--rounds", "1", "--requests", "4", "--out", str(tmp_path)]
    argv += ["--long-tokens", "4096", "--input-tokens", "16", "--output-tokens", "16"]
    assert serve.main([*argv, "--serve-args", "--kv-cache-memory 256MiB"]) == 0
    modes = json.loads((tmp_path / "serve.json").read_text())["modes"]
    assert list(modes) == ["load", "overhead", "long"]
    assert modes["long"]["long_tokens"] == 4096 and modes["long"]["model_id"] == "random"
    assert modes["overhead"]["model_id"] == "demo" and modes["overhead"]["median"]["bare_step_s"]
    assert modes["load"]["completed"] == 4 and modes["load"]["start_goal"]["target"] == 5
    assert (tmp_path / "serve.png").read_bytes()[1:4] == b"PNG"
    told = capsys.readouterr().out
    assert (tmp_path / "serve.txt").read_text() == told
    assert "beside a prompt of 4096 tokens" in told and "/health is 200" in told


def test_a_key_in_any_letters(serve: Serve, tmp_path: Path) -> None:
    server = serve("--api-key", "schlüssel")
    assert measured(server, tmp_path, "--api-key", "schlüssel")["completed"] == 16


def test_unusable_options(server: Running) -> None:
    for options, words in (
        (["--url", "ftp://x"], "address"),
        (["--url", server.url, "--concurrency", "0"], "positive"),
        (["--url", server.url, "--concurrency", "1.5"], "whole"),
        (["--url", server.url, "--rate", "x"], "positive"),
        (["--url", server.url, "--served-model-name", "nobody"], "tiny"),
        (["--url", "http://127.0.0.1:9"], "nobody listens"),
        (["--url", server.url, "--serve-args=--quick"], "--serve-args belongs"),
        (["--url", server.url, "--api-key", "a\nb"], "--api-key 'a"),
        # Before anything is asked of a server that is not there:
        (["--url", "http://127.0.0.1:9", "--rate", "x"], "positive"),
        (["--url", "http://127.0.0.1:9", "--plot", "found.txt"], "must end in .png"),
    ):
        with pytest.raises(RequestError, match=words):
            serve.main(options)
