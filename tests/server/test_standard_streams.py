"""A server whose standard streams are full, closed or left by their reader: it serves."""

from __future__ import annotations

import io
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
