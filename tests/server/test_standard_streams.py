"""A server whose standard streams are full, closed or left by their reader: it serves."""

from __future__ import annotations

import fcntl
import io
import json
import os
import select
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from saccade.server.logs import secure_streams

from .conftest import SMALL
from .running import COMMAND, START_S


@pytest.mark.parametrize("redirection", ["2>/dev/full", "<&- >&- 2>&-", "reader leaves"])
def test_it_serves_whatever_becomes_of_its_words(tiny: Path, redirection: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    argv = shlex.join([*COMMAND, str(tiny), "--port", str(port), *SMALL])
    pipe = subprocess.PIPE
    if redirection == "reader leaves":
        process = subprocess.Popen(["sh", "-c", f"exec {argv}"], stdout=pipe, stderr=pipe)
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()
    else:
        process = subprocess.Popen(["sh", "-c", f"exec {argv} {redirection}"])
    try:
        assert ready(f"http://127.0.0.1:{port}", process) == {"status": "ready", "restarts": 0}
        process.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()


def test_a_reader_that_stops_does_not_stop_it(tiny: Path) -> None:
    argv = [*COMMAND, str(tiny), "--port", "0", *SMALL]
    with subprocess.Popen(argv, stderr=subprocess.PIPE) as process:
        try:
            assert process.stderr is not None
            fcntl.fcntl(process.stderr, fcntl.F_SETPIPE_SZ, 4096)
            lines = (json.loads(line) for line in process.stderr if line.startswith(b"{"))
            url = next(line["url"] for line in lines if line["event"] == "listening")
            began = time.monotonic()
            with httpx.Client(base_url=url, timeout=10) as http:
                for _ in range(60):  # of some 200 bytes each
                    assert http.get("/version").status_code == 200
                assert time.monotonic() - began < 10
                assert ready(url, process) == {"status": "ready", "restarts": 0}
                os.read(process.stderr.fileno(), 65_536)
                http.get("/version", headers={"x-request-id": "heard-again"})
                heard = b""
                while b"heard-again" not in heard:
                    assert select.select([process.stderr], [], [], 10)[0], heard
                    heard = os.read(process.stderr.fileno(), 65_536)
            process.terminate()
            assert process.wait(20) == 0
        finally:
            process.kill()


def ready(url: str, process: subprocess.Popen[bytes]) -> object:
    """What /health says once the engine is ready, or restarted."""
    until = time.monotonic() + START_S
    while time.monotonic() < until and process.poll() is None:
        try:
            health = httpx.get(f"{url}/health").json()
        except httpx.TransportError:
            health = {}
        if health.get("status") == "ready" or health.get("restarts"):
            return health
        time.sleep(0.05)
    raise AssertionError(f"not ready; its exit status: {process.poll()}")


def test_an_error_of_usage_keeps_its_status() -> None:
    """Even where it cannot be told."""
    argv = shlex.join([*COMMAND, "demo", "--port", "70000"])
    assert subprocess.run(["sh", "-c", f"{argv} 2>/dev/full"], check=False).returncode == 2


def test_what_somebody_put_in_place_of_stderr_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = io.StringIO()
    monkeypatch.setattr(sys, "stderr", mine)
    secure_streams()
    assert sys.stderr is mine
