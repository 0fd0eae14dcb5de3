"""The gate and what it shows: keys, limits, CORS, TLS, logs, metrics, the specification."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from saccade import SamplingParams, __version__
from saccade.server.gate import BoundedBody, digest, request_id
from saccade.server.limits import Admission, Bodies, Limits
from saccade.server.listen import Listen
from saccade.server.metrics import VLLM_NAMES
from saccade.server.protocol.errors import ApiError

from .conftest import SMALL, Serve
from .running import Running, completion, streamed


def test_keys_from_everywhere(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "keys"
    file.write_text("\ufefffrom-file\n# comment\ncl\u00e9-\u00e0\n\n")
    monkeypatch.setenv("SACCADE_API_KEY", "from-env other")
    server = serve("--api-key", "from-flag", "--api-key-file", str(file))
    for key in ("from-flag", "from-file", "cl\u00e9-\u00e0", "from-env", "other"):
        sent = {"authorization": f"Bearer {key}".encode()}
        assert server.http.get("/v1/models", headers=sent).status_code == 200
    wrong: list[dict[str, str]] = [
        {},
        {"authorization": "Bearer"},
        {"authorization": "Bearer from-flag2"},
        {"authorization": "Basic from-flag"},
        {"authorization": "from-flag"},
        {"authorization": "Bearer caf\u00e9"},
    ]
    for headers in wrong:
        encoded = {name: value.encode("latin-1") for name, value in headers.items()}
        for path in ("/v1/models", "/v1/nothing", "/tokenize", "/abort"):
            reply = server.http.get(path, headers=encoded)
            assert reply.status_code == 401, (headers, path)
            assert reply.json()["error"]["code"] == "invalid_api_key"
            assert reply.headers["www-authenticate"] == "Bearer"
    for path in ("/health", "/live", "/ready", "/version", "/metrics", "/openapi.json", "/docs"):
        assert server.http.get(path).status_code == 200
    document = server.http.get("/openapi.json").json()
    assert document["security"] == [{"key": []}]
    assert document["paths"]["/health"]["get"]["security"] == []
    assert "from-flag" not in server.log.read_text()


def test_bodies_have_a_bound(serve: Serve) -> None:
    server = serve("--max-body-size", "10KiB")
    body = json.dumps({"prompt": "x" * 20_000}).encode()
    headers = {"content-type": "application/json"}
    reply = server.http.post("/v1/completions", content=body, headers=headers)
    assert reply.status_code == 413 and "10240 bytes" in reply.json()["error"]["message"]

    def chunked() -> Any:
        yield from (body[at : at + 1000] for at in range(0, len(body), 1000))

    reply = server.http.post("/v1/completions", content=chunked(), headers=headers)
    assert reply.status_code == 413
    assert completion(server)["choices"]
    prompt = {"prompt": "x" * 9_000, "truncate_prompt_tokens": 5, "max_tokens": 1}
    assert server.http.post("/v1/completions", json=prompt).status_code == 200


def half_a_body(server: Running, size: int) -> socket.socket:
    """A client that sends so much of a body, and keeps the rest."""
    url = httpx.URL(server.url)
    made = socket.create_connection((url.host, url.port))
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {size + 9}\r\n"
    made.sendall(f"{head}content-type: application/json\r\n\r\n".encode() + b" " * size)
    return made


def test_bodies_have_a_bound_together(serve: Serve) -> None:
    server = serve("--max-bodies-size", "1MiB", "--body-timeout", "2")
    large = {"prompt": "x" * 300_000, "truncate_prompt_tokens": 5, "max_tokens": 1}

    def status() -> int:
        reply = server.http.post("/v1/completions", json=large)
        if reply.status_code == 503:
            assert reply.headers["retry-after"] == "5" and reply.headers["connection"] == "close"
            assert "1048576 bytes together" in reply.json()["error"]["message"]
        return reply.status_code

    for _ in range(5):  # what was served is given back
        assert status() == 200
    clients = [half_a_body(server, 400_000) for _ in range(2)]
    time.sleep(0.3)
    assert status() == 503
    assert completion(server)["choices"]  # small ones are always taken
    clients.pop().close()  # so is what breaks off
    time.sleep(0.3)
    assert status() == 200
    clients.append(half_a_body(server, 400_000))
    time.sleep(2.5)
    assert status() == 200  # and what came too slowly
    for client in clients:
        client.close()


def test_other_pages_may_ask_only_if_told_so(server: Running, serve: Serve) -> None:
    ask = {"origin": "https://app.example", "access-control-request-method": "POST"}
    plain = server.http.options("/v1/completions", headers=ask)
    assert plain.status_code == 405 and "access-control-allow-origin" not in plain.headers
    told = serve("--cors-origin", "https://app.example")
    reply = told.http.options("/v1/completions", headers=ask)
    assert reply.status_code == 200
    assert reply.headers["access-control-allow-origin"] == "https://app.example"
    near = {**ask, "access-control-request-private-network": "true"}
    reply = told.http.options("/v1/completions", headers=near)
    assert reply.headers["access-control-allow-private-network"] == "true"
    evil = told.http.options("/v1/completions", headers={**near, "origin": "https://evil.example"})
    assert "access-control-allow-origin" not in evil.headers
    assert evil.status_code == 400 and evil.json()["error"]["code"] == "cors_refused"
    assert evil.headers["x-request-id"]


def test_a_page_with_openais_own_client_may_ask(serve: Serve) -> None:
    """Its headers are many, and an answer of any status must be readable to it."""
    server = serve("--cors-origin", "https://app.example", "--api-key", "key")
    origin = {"origin": "https://app.example"}
    names = "authorization,content-type,x-stainless-arch,x-stainless-lang,x-stainless-retry-count"
    ask = {"access-control-request-method": "POST", "access-control-request-headers": names}
    reply = server.http.options("/v1/completions", headers={**origin, **ask})
    assert reply.status_code == 200 and reply.headers["access-control-allow-headers"] == names
    assert reply.headers["access-control-allow-origin"] == "https://app.example"
    assert "access-control-allow-credentials" not in reply.headers
    server.wait_for("request", id=reply.headers["x-request-id"])
    for key, status in (("key", 200), ("other", 401)):
        headers = {**origin, "authorization": f"Bearer {key}", "x-stainless-lang": "js"}
        reply = server.http.post("/v1/completions", json={"prompt": "x"}, headers=headers)
        assert reply.status_code == status
        assert reply.headers["access-control-allow-origin"] == "https://app.example"
        assert reply.headers["access-control-expose-headers"] == "Retry-After, X-Request-Id"
    plain = {"access-control-request-method": "POST"}  # without an origin it is no such question
    assert server.http.options("/v1/completions", headers=plain).status_code == 401


@pytest.mark.parametrize(
    ("typed", "says"), [("secret\n", "None"), ("wrong\n", "does not open"), ("", "nor any input")]
)
def test_a_key_behind_a_password(tmp_path: Path, typed: str, says: str) -> None:
    """Asked of a process without a terminal."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the certificate, is not installed")
    files = [str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")]
    argv = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-days", "2", "-subj", "/CN=x"]
    argv += ["-passout", "pass:secret", "-out", files[0], "-keyout", files[1]]
    subprocess.run(argv, check=True, capture_output=True)
    script = (
        "import sys\nfrom saccade.server.listen import Listen\n"
        "try:\n    Listen('', 0, *sys.argv[1:]).tls\n    print(None)\n"
        "except ValueError as error:\n    print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *files],
        input=typed, capture_output=True, text=True, start_new_session=True, check=True,
    )  # fmt: skip
    assert says in done.stdout and done.stdout.count("\n") == 1


def test_tls(tiny: Path, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the certificate, is not installed")
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    argv = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
    subprocess.run(
        [*argv, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True
    )
    strict = Listen(certificate=str(certificate), key=str(key), client_ca=str(certificate))
    assert strict.tls is not None and strict.tls.verify_mode is ssl.CERT_REQUIRED
    assert strict.tls is strict.tls  # a password is asked for once
    for wrong in (certificate, tmp_path / "none.pem"):
        with pytest.raises(ValueError, match=r"--ssl-keyfile .*: no certificate with its private"):
            _ = Listen(certificate=str(certificate), key=str(wrong)).tls
    with pytest.raises(ValueError, match=r"--ssl-ca-certs .*: no certificates in PEM form"):
        _ = Listen(certificate=str(certificate), key=str(key), client_ca=str(key)).tls
    server = Running(
        tmp_path, tiny, *SMALL, "--ssl-certfile", str(certificate), "--ssl-keyfile", str(key)
    )
    try:
        assert server.url.startswith("https://")
        trusted = ssl.create_default_context(cafile=str(certificate))
        with httpx.Client(base_url=server.url, verify=trusted) as http:
            assert http.get("/live").status_code == 200
        with pytest.raises(httpx.HTTPError):
            httpx.get(server.url.replace("https", "http") + "/live")
    finally:
        server.stop()


def test_the_log_has_a_line_for_every_request(server: Running) -> None:
    headers = {"x-request-id": "log-me"}
    body = {"prompt": "secret words", "max_tokens": 5, "ignore_eos": True, "stream": True}
    server.http.post("/v1/completions", json=body, headers=headers)
    line = server.wait_for("request", id="log-me")  # written after the last byte has been sent
    assert len([each for each in server.events("request") if each["id"] == "log-me"]) == 1
    assert line["status"] == 200 and line["path"] == "/v1/completions" and line["stream"] is True
    assert line["prompt_tokens"] > 0 and line["completion_tokens"] == 5
    assert line["finish"] == ["length"] and line["model"] == "tiny"
    assert 0 < line["ttft_s"] <= line["seconds"] and line["queued_s"] >= 0
    assert line["prefill_keys_read"] == line["decode_keys_read"] == 1.0
    assert "secret" not in server.log.read_text()


def test_prompts_are_logged_if_asked(serve: Serve) -> None:
    server = serve("--log-prompts")
    completion(server, "secret words")
    line = server.wait_for("request", path="/v1/completions")
    assert "secret words" in str(line["prompt"])


def test_tokens_are_counted_as_they_come(server: Running) -> None:
    body = {"prompt": "def", "max_tokens": 400, "ignore_eos": True, "stream": True}
    name = "saccade_generation_tokens_total"
    before = server.metrics()[name]
    with server.http.stream("POST", "/v1/completions", json=body) as reply:
        events = (line for line in reply.iter_lines() if line.startswith("data: {"))
        for _ in range(20):
            next(events)
        assert 20 <= server.metrics()[name] - before < 400
        for _ in events:
            pass
    assert server.metrics()[name] - before == 400


def test_metrics(server: Running) -> None:
    before = server.metrics()
    completion(server, list(range(40, 80)), max_tokens=9, ignore_eos=True)
    streamed(server, "/v1/completions", {"prompt": "def", "max_tokens": 4, "ignore_eos": True})
    after = server.metrics()

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0)

    assert grown("saccade_generation_tokens_total") == 13
    assert grown("saccade_prompt_tokens_total") >= 41
    assert grown("saccade_time_to_first_token_seconds_count") == 2
    assert grown("saccade_inter_token_latency_seconds_count") >= 3
    assert grown("saccade_request_seconds_count") == 2
    assert grown('saccade_http_requests_total{method="POST",status="200"}') == 2
    assert grown('saccade_requests_finished_total{finished_reason="length"}') == 2
    assert after["saccade_engine_up"] == 1
    assert after["saccade_sequences_in_flight"] == after["saccade_queued_prompt_tokens"] == 0
    assert after['saccade_attention_keys_read_total{phase="decode"}'] > 0
    text = server.http.get("/metrics").text
    names = [family.name for family in text_string_to_metric_families(text)]
    assert len(names) == len(set(names)) and all(n.startswith("saccade_") for n in names)


def test_what_ends_early_is_counted_and_what_is_refused_is_not(serve: Serve) -> None:
    server = serve("--allowed-attention", "own")
    body = {"prompt": "def add", "max_tokens": 400, "ignore_eos": True, "n": 3, "stream": True}
    with server.http.stream("POST", "/v1/completions", json=body) as reply:
        next(reply.iter_lines())  # and away
    name = 'saccade_requests_finished_total{finished_reason="abort"}'
    until = time.monotonic() + 20
    while server.metrics().get(name, 0) < 3 and time.monotonic() < until:
        time.sleep(0.05)
    before = server.metrics()
    assert before[name] == 3 and before["saccade_request_seconds_count"] == 1
    refused = {"prompt": ["a", "b"], "attention": "window(64)"}
    reply = server.http.post("/v1/completions", json=refused)
    assert reply.status_code == 400 and reply.json()["error"]["param"] == "attention"
    after = server.metrics()
    for same in (name, "saccade_prompt_tokens_total", "saccade_request_seconds_count"):
        assert after[same] == before[same]


def test_a_body_has_one_length(server: Running) -> None:
    """A proxy may believe the other one: nothing more is read from such a connection."""
    host, port = server.url.removeprefix("http://").split(":")
    body = b'{"prompt": "def add", "max_tokens": 1}'
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    both = b"content-length: %d\r\ntransfer-encoding: chunked\r\n\r\n" % len(body)
    chunk = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    with socket.create_connection((host, int(port)), timeout=10) as sock:
        sock.sendall(head + both + chunk)
        received = b"".join(iter(lambda: sock.recv(4096), b""))
    assert received.startswith(b"HTTP/1.1 400 ") and b'"code":"invalid_http"' in received


def test_metrics_under_their_other_names(serve: Serve) -> None:
    server = serve("--metrics-compat", "vllm", "--served-model-name", "some/model")
    completion(server, "def add", max_tokens=3)
    text = server.http.get("/metrics").text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    for names in VLLM_NAMES.values():
        for name in names:
            family = families[f"vllm:{name}"]
            labels = family.samples[0].labels
            assert labels["model_name"] == "some/model" and labels["engine"] == "0", name
    values = server.metrics()
    about = '{engine="0",model_name="some/model"}'
    assert values[f"vllm:generation_tokens_total{about}"] == 3
    assert values[f"vllm:time_to_first_token_seconds_count{about}"] == 1
    assert values[f"vllm:num_requests_running{about}"] == 0
    assert families["vllm:cache_config_info"].samples[0].labels["block_size"] == "16"


def test_about_the_server(server: Running) -> None:
    assert server.http.get("/version").json() == {"version": __version__}
    assert server.http.get("/live").json()["status"] == "alive"
    assert server.http.get("/ready").json()["status"] == "ready"
    page = server.http.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "/v1/completions" in page.text and "CompletionRequest" in page.text
    for word in ("http://", "https://", "<script", "src="):
        assert word not in page.text


def test_the_http_process_has_no_torch() -> None:
    program = (
        "import sys, saccade.server.run, saccade.server.commands.serve;"
        "print({'torch', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd="/")
    assert done.stdout.strip() == "set()", done.stderr


def test_a_body_that_grows_is_stopped() -> None:
    async def receive() -> Any:
        return {"type": "http.request", "body": b"x" * 60, "more_body": True}

    async def run() -> None:
        body = BoundedBody(receive, 100, 5, Bodies(100))
        await body()
        with pytest.raises(ApiError, match="at most 100 bytes"):
            await body()
        for length in ("101", "1" * 30):
            with pytest.raises(ApiError, match="at most 100 bytes"):
                BoundedBody(receive, 100, 5, Bodies(100)).check_length(length)
        for length in (None, "100", "-5", "abc"):
            BoundedBody(receive, 100, 5, Bodies(100)).check_length(length)

    asyncio.run(run())
    assert request_id("ok") == "ok" and request_id("a\nb") != "a\nb" and len(request_id(None)) == 32
    assert digest(b"a") != digest(b"b") and len(digest(b"")) == 32


def test_an_answer_without_max_tokens_has_an_end() -> None:
    limits = Limits(output_tokens=1000, logprob_entries=600)
    assert limits.with_end(SamplingParams(max_tokens=250), 4).max_tokens == 250
    assert limits.with_end(SamplingParams(max_tokens=None), 4).max_tokens == 250
    assert limits.with_end(SamplingParams(max_tokens=None, logprobs=2), 4).max_tokens == 50
    for params, count in (
        (SamplingParams(max_tokens=251), 4),
        (SamplingParams(max_tokens=51, logprobs=2), 4),
        (SamplingParams(max_tokens=None, min_tokens=251), 4),
    ):
        with pytest.raises(ApiError, match="may be at most"):
            limits.with_end(params, count)


def test_places_are_given_back() -> None:
    admission = Admission(Limits(queued_requests=2, queued_tokens=100))
    info: Any = type("Info", (), {"max_num_seqs": 1, "num_tokens": 10})
    first = admission.enter(info, 2, 90)
    second = admission.enter(info, 1, 10)
    with pytest.raises(ApiError, match="3 of at most 3 sequences"):
        admission.enter(info, 1, 1)
    second.leave()
    second.leave()
    with pytest.raises(ApiError, match="90 of at most 100"):
        admission.enter(info, 1, 11)
    first.note_first_token(90)
    third = admission.enter(info, 1, 1000)  # nothing else waits
    admission.note_speed(100, 1.0)
    assert admission.retry_s() == 10.0
    first.leave()
    third.leave()
    assert (admission.sequences, admission.waiting_tokens) == (0, 0)
    assert Admission(Limits()).enter(info, 10**6, 10**9)  # alone, it may


def test_a_small_reply_does_not_wait_for_an_acknowledgement() -> None:
    """Nagle's algorithm is off on connections to the socket that the server listens on."""

    async def run() -> int:
        seen: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            found = writer.get_extra_info("socket")
            seen.set_result(found.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        listening = Listen(port=0).open()
        async with await asyncio.start_server(take, sock=listening):
            _, writer = await asyncio.open_connection(*listening.getsockname())
            found = await asyncio.wait_for(seen, 10)
            writer.close()
            return found

    assert asyncio.run(run())


def test_a_stream_over_http_1_0_has_no_chunks(server: Running) -> None:
    """Its end is the end of the connection; over HTTP/1.1 the same events come in chunks."""
    host, port = server.url.removeprefix("http://").split(":")
    body = b'{"prompt": "def add", "max_tokens": 4, "temperature": 0, "stream": true}'
    replies = []
    for version in (b"1.0", b"1.1"):
        with socket.create_connection((host, int(port)), timeout=30) as sock:
            sock.sendall(
                b"POST /v1/completions HTTP/" + version + b"\r\nhost: x\r\nconnection: close\r\n"
                b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
                % (len(body), body)
            )
            replies.append(b"".join(iter(lambda: sock.recv(1 << 16), b"")))
    old, new = (reply.partition(b"\r\n\r\n") for reply in replies)
    assert b"chunked" not in old[0].lower() and b"transfer-encoding: chunked" in new[0].lower()
    assert old[2].startswith(b"data: ") and old[2].endswith(b"data: [DONE]\n\n")
    rest, events = new[2], b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        events += rest[: int(size, 16)]
        rest = rest[int(size, 16) + 2 :]
    assert events.count(b"data: ") == old[2].count(b"data: ") >= 5
    assert events.endswith(b"data: [DONE]\n\n")


def test_a_target_may_be_a_whole_uri(server: Running, serve: Serve) -> None:
    """As clients of a proxy send it; keys are asked for as ever."""

    def get(asked: Running, target: bytes) -> httpx.Response:
        return asked.http.get("/", extensions={"target": target})

    health = get(server, b"HTTP://somebody:8000/health?a=b")
    assert health.json() == {"status": "ready", "restarts": 0}
    assert get(server, b"http://somebody/v1/models/alias%2Fof-it").json()["id"] == "alias/of-it"
    assert "<html" in get(server, b"http://somebody").text
    assert get(server, b"http://somebody/http://somebody/health").status_code == 404
    assert get(server, b"ftp://somebody/health").status_code == 404
    closed = serve("--api-key", "secret", ready=False)
    assert get(closed, b"http://somebody/v1/models").status_code == 401
    assert get(closed, b"http://somebody/health").status_code != 401


def test_a_head_is_bounded(server: Running) -> None:
    for path, size in (("/health", 70_000), (f"/health?{'a' * 60_000}", 10_000)):
        try:
            reply = server.http.get(path, headers={"x": "a" * size})
        except httpx.HTTPError:
            continue  # it came in pieces, and the parser has hung up
        assert reply.status_code in (400, 431), reply.text
        assert reply.json()["error"]["code"] in ("head_too_large", "invalid_http")


def test_a_body_that_breaks_off_is_nobodys_fault(server: Running) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    for body in (b"content-length: 90\r\n\r\n{", b"transfer-encoding: chunked\r\n\r\nzz\r\n"):
        with socket.create_connection((host, int(port)), timeout=30) as sock:
            sock.sendall(head + b"x-request-id: broken\r\n" + body)
    until = time.monotonic() + 20
    while len([line for line in server.lines() if line.get("id") == "broken"]) < 2:
        assert time.monotonic() < until
        time.sleep(0.05)
    found = [line for line in server.lines() if line.get("id") == "broken"]
    assert {line["status"] for line in found} == {499} and "traceback" not in str(found)
