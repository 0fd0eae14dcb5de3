"""Processes that die, hang, and are told to leave: run for real, with signals."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import string
import subprocess
import threading
import time
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest

from .conftest import Serve
from .running import COMMAND, Running, completion

LONG: dict[str, Any] = {"prompt": "def add", "max_tokens": 400, "ignore_eos": True}


class Stream(threading.Thread):
    """A stream that is read to its end elsewhere; `lines` grows, `ended` is when it was over."""

    def __init__(self, server: Running, **options: Any) -> None:
        super().__init__(daemon=True)
        self.url = server.url
        self.body = {**LONG, **options, "stream": True}
        self.lines: list[str] = []
        self.status = 0
        self.ended = 0.0
        self.begun = threading.Event()
        self.start()

    def run(self) -> None:
        try:
            with (
                httpx.Client(base_url=self.url, timeout=60) as http,
                http.stream("POST", "/v1/completions", json=self.body) as reply,
            ):
                self.status = reply.status_code
                for line in reply.iter_lines():
                    if line:
                        self.lines.append(line)
                        self.begun.set()
        except httpx.HTTPError as error:
            self.lines.append(f"broken: {error!r}")
        finally:
            self.ended = time.monotonic()
            self.begun.set()

    @property
    def error(self) -> dict[str, Any]:
        """The error event, which comes right before the end."""
        assert self.lines[-1] == "data: [DONE]", self.lines[-2:]
        found: dict[str, Any] = json.loads(self.lines[-2].removeprefix("data: "))["error"]
        return found


class Waiting(threading.Thread):
    """A request whose whole reply is waited for elsewhere."""

    reply: httpx.Response

    def __init__(self, server: Running, path: str, body: Any, **headers: str) -> None:
        super().__init__(daemon=True)
        self._args = (f"{server.url}{path}", body, headers)
        self.start()

    def run(self) -> None:
        url, body, headers = self._args
        self.reply = httpx.post(url, json=body, headers=headers, timeout=60)


def until_health(server: Running, status: int, seconds: float) -> float:
    """Seconds until /health answers so."""
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        if server.http.get("/health").status_code == status:
            return time.monotonic() - began
        time.sleep(0.02)
    raise AssertionError(f"/health was not {status} within {seconds} s")


def kill_and_recover(server: Running, number: int) -> None:
    """kill -9 under load: streams end with an error, 503 at once, then good answers again."""
    right = completion(server)["choices"]
    streams = [Stream(server) for _ in range(4)]
    assert all(stream.begun.wait(30) for stream in streams)
    waiting: list[httpx.Response] = []
    asking = threading.Thread(
        target=lambda: waiting.append(
            httpx.post(f"{server.url}/v1/completions", json=LONG, timeout=60)
        )
    )
    asking.start()
    until = time.monotonic() + 10
    while server.metrics()["saccade_sequences_in_flight"] < 5 and time.monotonic() < until:
        time.sleep(0.01)
    killed = time.monotonic()
    os.kill(server.engine_pid, signal.SIGKILL)
    assert until_health(server, 503, 5) < 1
    reply = server.http.post("/v1/completions", json=LONG)
    assert reply.status_code == 503 and int(reply.headers["retry-after"]) >= 1
    assert reply.json()["error"]["code"] == "engine_unavailable"
    for stream in streams:
        stream.join(10)
        assert stream.ended - killed < 2
        assert stream.error["code"] == "engine_unavailable"
    asking.join(10)
    assert waiting[0].status_code == 503 and "stopped" in waiting[0].json()["error"]["message"]
    server.wait_for("the engine is ready", number + 1)
    assert completion(server)["choices"] == right
    assert server.http.get("/health").json() == {"status": "ready", "restarts": number}
    assert server.metrics()["saccade_engine_restarts_total"] == number


def test_the_engine_is_killed(serve: Serve) -> None:
    server = serve()
    for number in (1, 2):
        kill_and_recover(server, number)


@pytest.mark.slow
def test_the_engine_is_killed_again_and_again(serve: Serve) -> None:
    server = serve()
    for number in range(1, 21):
        kill_and_recover(server, number)


def hang_and_recover(server: Running, limit: float) -> None:
    """SIGSTOP: unhealthy within the limit, streams end, another process takes over."""
    right = completion(server)["choices"]
    stream = Stream(server)
    assert stream.begun.wait(30)
    old = server.engine_pid
    os.kill(old, signal.SIGSTOP)
    assert until_health(server, 503, limit + 5) < limit
    stream.join(5)
    assert stream.error["code"] == "engine_unavailable"
    server.wait_for("the engine is ready", 2)
    assert server.engine_pid != old
    assert completion(server)["choices"] == right


def test_the_engine_hangs(serve: Serve) -> None:
    hang_and_recover(serve("--engine-timeout", "2"), 4)


@pytest.mark.slow
def test_the_engine_hangs_with_the_default_limit(serve: Serve) -> None:
    hang_and_recover(serve(), 10)


def test_a_terminated_server_finishes_what_it_has(serve: Serve) -> None:
    server = serve()
    stream = Stream(server)
    assert stream.begun.wait(30)
    server.signal()
    server.wait_for("shutting down")
    with httpx.Client(base_url=server.url) as http:
        reply = http.get("/ready")
        assert reply.status_code == 503 and reply.json()["status"] == "draining"
        reply = http.post("/v1/completions", json=LONG)
        assert reply.status_code == 503 and reply.json()["error"]["code"] == "shutting_down"
        assert http.get("/health").status_code == 200
    stream.join(30)
    assert stream.lines[-1] == "data: [DONE]" and '"finish_reason":"length"' in stream.lines[-2]
    assert server.wait() == 0
    assert not Path(f"/proc/{server.engine_pid}").exists()


def test_terminated_twice_it_does_not_wait(serve: Serve) -> None:
    server = serve()
    streams = [Stream(server, n=8) for _ in range(4)]
    assert all(stream.begun.wait(30) for stream in streams)
    server.signal()
    server.wait_for("shutting down")
    server.signal(signal.SIGINT)
    assert server.wait(6) == 0


def test_a_drain_has_an_end(serve: Serve) -> None:
    server = serve("--drain-timeout", "0.3")
    streams = [Stream(server, n=16) for _ in range(6)]
    assert all(stream.begun.wait(30) for stream in streams)
    server.signal()
    assert server.wait(8) == 0
    for stream in streams:
        stream.join(5)
        assert stream.lines[-1] == "data: [DONE]"
    ends = ['"finish_reason":"abort"' in "".join(stream.lines[-40:]) for stream in streams]
    assert any(ends)  # those that were first may have finished


@pytest.mark.parametrize("signals", [1, 2])
def test_a_drain_does_not_need_the_engine(serve: Serve, signals: int) -> None:
    """It hangs: whoever waits for it is told so, and so is a request whose body is half-sent."""
    server = serve("--drain-timeout", "0.5" if signals == 1 else "60")
    stream = Stream(server)
    host, port = server.url.removeprefix("http://").split(":")
    assert stream.begun.wait(30)
    os.kill(server.engine_pid, signal.SIGSTOP)
    whole = Waiting(server, "/v1/completions", LONG)
    vectors = Waiting(server, "/v1/embeddings", {"input": [[40] * 400] * 64})
    until = time.monotonic() + 20
    while server.metrics()["saccade_sequences_in_flight"] < 66 and time.monotonic() < until:
        time.sleep(0.01)
    with socket.create_connection((host, int(port)), timeout=20) as half:
        half.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"content-length: 90\r\n\r\n{"
        )
        for _ in range(signals):
            server.signal()
            time.sleep(0.2)
        received = b"".join(iter(lambda: half.recv(4096), b""))
    assert server.wait(12) == 0
    stream.join(5)
    assert stream.error["code"] == "shutting_down"
    assert received.startswith(b"HTTP/1.1 503 ") and b'"code":"shutting_down"' in received
    for each in (whole, vectors):
        each.join(5)
        assert each.reply.status_code == 503 and int(each.reply.headers["retry-after"]) >= 1
        assert each.reply.json()["error"]["code"] == "shutting_down"
    assert "Traceback" not in server.log.read_text()
    assert sorted(line["status"] for line in server.events("request")) == [200, 503, 503, 503]


def test_a_reader_that_stopped_does_not_hold_the_end_up(serve: Serve) -> None:
    server = serve("--drain-timeout", "0.3", "--send-timeout", "60", "--stream-interval", "0")
    body = json.dumps({**LONG, "n": 16, "logprobs": 20, "stream": True}).encode()
    host, port = server.url.removeprefix("http://").split(":")
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect((host, int(port)))
        sock.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%b" % (len(body), body)
        )
        for busy in (True, False):  # the engine works, and has done its work
            until = time.monotonic() + 30
            while (server.metrics()["saccade_requests_running"] > 0) is not busy:
                assert time.monotonic() < until
                time.sleep(0.02)
        assert server.metrics()["saccade_sequences_in_flight"] == 16
        server.signal()
        assert server.wait(12) == 0
    text = server.log.read_text()
    assert "Traceback" not in text and "without completing" not in text
    assert [line["status"] for line in server.events("request")] == [200]


def test_a_text_that_is_read_for_long_does_not_hold_the_end_up(serve: Serve) -> None:
    server = serve("--drain-timeout", "0.1", model="demo")
    random = Random(5)
    text = "".join(random.choices(string.ascii_letters + string.digits, k=1_000_000))
    body = {"input": [text] * 14, "truncate_prompt_tokens": 5}
    waiting = Waiting(server, "/v1/embeddings", body)
    time.sleep(1.5)
    began = time.monotonic()
    server.signal()
    waiting.join(30)
    assert server.wait(30) == 0 and time.monotonic() - began < 10
    assert waiting.reply.status_code == 503
    assert waiting.reply.json()["error"]["code"] == "shutting_down"
    assert "Traceback" not in server.log.read_text()


def test_terminated_while_it_starts_and_when_idle(serve: Serve) -> None:
    starting = serve(ready=False)
    assert starting.http.get("/live").status_code == 200
    assert starting.http.get("/health").json()["status"] == "starting"
    reply = starting.http.post("/v1/completions", json=LONG)
    assert reply.status_code == 503 and "retry-after" in reply.headers
    starting.signal()
    assert starting.wait(8) == 0


def test_without_its_parent_the_engine_leaves(serve: Serve) -> None:
    server = serve()
    engine = server.engine_pid
    server.process.kill()
    server.wait()
    until = time.monotonic() + 5
    while Path(f"/proc/{engine}").exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not Path(f"/proc/{engine}").exists()


def test_a_model_that_cannot_be_loaded_ends_the_server(serve: Serve, tmp_path: Any) -> None:
    folder = tmp_path / "broken"
    folder.mkdir()
    argv = [*COMMAND, str(folder), "--port", "0"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "config.json" in done.stderr.splitlines()[-1]
    argv = [*COMMAND, "demo", "--port", "0", "--kv-cache-memory", "100TiB"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "100.0 TiB" in done.stderr.splitlines()[-1]


def test_clients_that_leave_free_their_pages_at_once(serve: Serve) -> None:
    server = serve("--max-num-seqs", "4")
    before = server.pages()
    for _ in range(3):
        leaving = []
        for _ in range(6):  # more than run at once: some leave the queue
            http = httpx.Client(base_url=server.url, timeout=30)
            request = http.build_request("POST", "/v1/completions", json={**LONG, "stream": True})
            leaving.append((http, request))
        threads = [
            threading.Thread(target=lambda h=http, r=request: _leave(h, r))
            for http, request in leaving
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        after = server.pages()
        assert after["used"] == 0
        assert after["free"] + after["cached"] == before["free"] + before["cached"]
    assert completion(server)["choices"][0]["text"]


def _leave(http: httpx.Client, request: httpx.Request) -> None:
    """Sends a request and goes away without waiting for an answer."""
    try:
        http.send(request, stream=True).close()
    finally:
        http.close()


def test_abort_by_id(serve: Serve) -> None:
    server = serve("--api-key", "one", "--api-key", "two")
    one, two = ({"authorization": f"Bearer {key}"} for key in ("one", "two"))
    found: list[httpx.Response] = []

    def ask() -> None:
        headers = {**one, "x-request-id": "job-1"}
        with httpx.Client(base_url=server.url, timeout=60) as http:
            found.append(http.post("/v1/completions", json={**LONG, "n": 8}, headers=headers))

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(0.5)
    wrong = server.http.post("/abort", json={"request_id": "job-1"}, headers=two)
    assert wrong.json() == {"aborted": 0}  # another key's
    reply = server.http.post("/abort", json={"request_id": "cmpl-job-1"}, headers=one)
    assert reply.json() == {"aborted": 1}
    thread.join(30)
    choices = found[0].json()["choices"]
    assert {choice["finish_reason"] for choice in choices} == {"abort"}
    assert 0 < found[0].json()["usage"]["completion_tokens"] < 8 * 400
    assert server.http.post("/abort", json={"request_id": "x"}).status_code == 401


def test_abort_by_an_id_that_looks_like_a_replys(serve: Serve) -> None:
    server = serve()
    for own, asked in (
        ("cmpl-a", "cmpl-a"),
        ("chatcmpl-b", "cmpl-chatcmpl-b"),
        ("resp_resp_c", "resp_resp_resp_c"),
        ("d", "resp_d"),
    ):
        waiting = Waiting(server, "/v1/completions", {**LONG, "n": 8}, **{"x-request-id": own})
        assert aborted(server, asked) == 1
        waiting.join(30)
        assert waiting.reply.json()["id"] == f"cmpl-{own}"
        assert waiting.reply.json()["choices"][0]["finish_reason"] == "abort"
        until_idle(server)  # or the next one would seem to run already
    assert server.http.post("/abort", json={"request_id": "cmpl-"}).json() == {"aborted": 0}


def until_idle(server: Running) -> None:
    """Until the engine works on nothing."""
    until = time.monotonic() + 20
    while server.metrics()["saccade_requests_running"] > 0 and time.monotonic() < until:
        time.sleep(0.01)


def aborted(server: Running, id: str) -> int:
    """What /abort answers once the engine works on something; 0 when it never does."""
    until = time.monotonic() + 20
    while server.metrics()["saccade_requests_running"] == 0 and time.monotonic() < until:
        time.sleep(0.01)
    return int(server.http.post("/abort", json={"request_id": id}).json()["aborted"])


def held_embeddings(server: Running) -> Waiting:
    """A request under the id `vectors`, before an engine that has been stopped."""
    os.kill(server.engine_pid, signal.SIGSTOP)
    body = {"input": [[40] * 50] * 200}
    waiting = Waiting(server, "/v1/embeddings", body, **{"x-request-id": "vectors"})
    until = time.monotonic() + 5
    while server.metrics()["saccade_sequences_in_flight"] == 0 and time.monotonic() < until:
        time.sleep(0.01)
    return waiting


def test_aborted_embeddings_are_an_error_of_the_client(serve: Serve) -> None:
    server = serve()
    waiting = held_embeddings(server)
    reply = server.http.post("/abort", json={"request_id": "vectors"})
    assert reply.json() == {"aborted": 1}
    os.kill(server.engine_pid, signal.SIGCONT)
    waiting.join(30)
    assert waiting.reply.status_code == 400
    assert waiting.reply.json()["error"] == {
        "message": "The request was aborted.",
        "type": "invalid_request_error",
        "param": None,
        "code": "aborted",
    }


def test_embeddings_that_a_drain_leaves_are_unavailable(serve: Serve) -> None:
    server = serve("--drain-timeout", "0.1")
    waiting = held_embeddings(server)
    server.signal()
    server.wait_for("requests did not finish in time")
    os.kill(server.engine_pid, signal.SIGCONT)
    waiting.join(30)
    assert waiting.reply.status_code == 503
    assert waiting.reply.json()["error"]["code"] == "shutting_down"


# Its tokens are seconds of work on a fast machine, and many on a slow one.
GIANT = "def add " * 1_900_000  # within what a body may have


def ask_beside(server: Running, path: str, body: dict[str, Any], **headers: str) -> Any:
    """Asks in a thread; (thread, replies)."""
    found: list[httpx.Response] = []

    def ask() -> None:
        with (
            contextlib.suppress(httpx.TransportError),
            httpx.Client(base_url=server.url, timeout=60) as http,
        ):
            found.append(http.post(path, json=body, headers=headers))

    thread = threading.Thread(target=ask)
    thread.start()
    return thread, found


def test_abort_while_the_prompt_is_encoded(serve: Serve) -> None:
    server = serve(model="demo")
    body = {**LONG, "prompt": GIANT[:1_000_000], "truncate_prompt_tokens": 5, "max_tokens": 250}
    thread, found = ask_beside(server, "/v1/completions", body, **{"x-request-id": "job"})
    until = time.monotonic() + 10
    while server.http.post("/abort", json={"request_id": "job"}).json() == {"aborted": 0}:
        assert time.monotonic() < until
        time.sleep(0.02)
    assert not found
    thread.join(60)
    (choice,) = found[0].json()["choices"]
    assert choice["finish_reason"] == "abort"
    assert found[0].json()["usage"]["completion_tokens"] < 20


def test_terminated_while_a_long_text_is_encoded(serve: Serve) -> None:
    server = serve("--drain-timeout", "1", model="demo")
    thread, found = ask_beside(server, "/tokenize", {"prompt": GIANT})
    time.sleep(1)
    began = time.monotonic()
    server.signal()
    assert server.wait(30) == 0
    assert time.monotonic() - began < 6
    thread.join(10)
    assert not found or found[0].status_code not in (200, 413)


def test_overload_is_refused_at_once_and_the_admitted_finish(serve: Serve) -> None:
    server = serve("--max-num-seqs", "2", "--max-queued-requests", "4")
    body = {**LONG, "max_tokens": 100}
    replies: list[tuple[float, httpx.Response]] = []

    def ask() -> None:
        with httpx.Client(base_url=server.url, timeout=60) as http:
            began = time.monotonic()
            reply = http.post("/v1/completions", json=body)
            replies.append((time.monotonic() - began, reply))

    threads = [threading.Thread(target=ask) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    good = [reply for _, reply in replies if reply.status_code == 200]
    refused = [(seconds, reply) for seconds, reply in replies if reply.status_code == 503]
    assert len(good) >= 6 and len(good) + len(refused) == 40 and len(refused) >= 20
    assert all(r.json()["usage"]["completion_tokens"] == 100 for r in good)
    for _, reply in refused:
        assert int(reply.headers["retry-after"]) >= 1
        assert reply.json()["error"]["code"] == "overloaded"
    assert server.metrics()['saccade_requests_refused_total{code="overloaded"}'] == len(refused)
    assert server.pages()["used"] == 0


def test_waiting_prompts_have_a_budget_too(serve: Serve) -> None:
    server = serve("--max-num-seqs", "1", "--max-queued-tokens", "500")
    streams = [Stream(server, prompt=[40 + number] * 100) for number in range(12)]
    assert all(stream.begun.wait(60) for stream in streams)
    refused = [stream for stream in streams if stream.status == 503]
    assert refused and all("prompt tokens wait" in stream.lines[0] for stream in refused)
    for stream in streams:
        stream.join(60)
    good = [stream for stream in streams if stream.status == 200]
    assert len(good) >= 5 and all(stream.lines[-1] == "data: [DONE]" for stream in good)


def test_half_sent_requests_do_not_stay(serve: Serve) -> None:
    server = serve("--body-timeout", "0.5")
    host, port = server.url.removeprefix("http://").split(":")
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n"
    full = head + b"content-type: application/json\r\ncontent-length: 100\r\n\r\n"
    for sent, answer in ((b"", b""), (head, b""), (full + b'{"pro', b"408")):
        with socket.create_connection((host, int(port)), timeout=10) as sock:
            sock.sendall(sent)
            began = time.monotonic()
            received = b"".join(iter(lambda s=sock: s.recv(4096), b""))
            assert time.monotonic() - began < 5
            assert answer in received
    with socket.create_connection((host, int(port)), timeout=10) as sock:
        sock.sendall(b"GET /live HTTP/1.1\r\nhost: x\r\n\r\n")
        received = b""
        while not received.endswith(b"}"):
            received += sock.recv(4096)
        assert received.startswith(b"HTTP/1.1 200 OK")
        sock.sendall(b"GET /li")  # and now the second head is half-sent
        assert sock.recv(4096) == b""
    for garbage in (b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 20_000):
        with socket.create_connection((host, int(port)), timeout=10) as sock:
            try:
                sock.sendall(garbage + b"\r\n\r\n")
                received = b"".join(iter(lambda s=sock: s.recv(4096), b""))
            except ConnectionError:
                continue
            assert b"400 Bad Request" in received and b'"error"' in received
    assert server.http.get("/health").status_code == 200
