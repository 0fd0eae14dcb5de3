"""A server in a process of its own, as people run it, for tests that talk to it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

START_S = 120  # a busy machine; tests of start-up time measure for themselves
COMMAND = [sys.executable, "-m", "saccade.server.cli", "serve"]


class Running:
    """A running `saccade serve`; `log` is what it writes to stderr."""

    def __init__(self, folder: Path, model: str | Path, *options: str) -> None:
        self.log = folder / f"serve-{time.monotonic_ns()}.log"
        self.process = subprocess.Popen(
            [*COMMAND, str(model), "--port", "0", *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self.log.open("wb"),
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        self.url = str(self.wait_for("listening")["url"])
        self.http = httpx.Client(base_url=self.url, timeout=60)

    def lines(self) -> Iterator[dict[str, Any]]:
        """The structured lines of the log so far."""
        for line in self.log.read_text(errors="replace").splitlines():
            if line.startswith("{") and line.endswith("}"):
                yield json.loads(line)

    def events(self, name: str) -> list[dict[str, Any]]:
        """The lines of one kind."""
        return [line for line in self.lines() if line["event"] == name]

    def wait_for(self, event: str, count: int = 1, **fields: Any) -> dict[str, Any]:
        """The count-th line of this kind that has these fields, when it is there."""
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            found = [line for line in self.events(event) if fields.items() <= line.items()]
            if len(found) >= count:
                return found[count - 1]
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.02)
        raise AssertionError(f"no {event!r}\n{self.log.read_text()}")

    def wait_ready(self) -> None:
        """Until /ready says so."""
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            if self.http.get("/ready").status_code == 200:
                return
            time.sleep(0.05)
        raise AssertionError(self.log.read_text())

    @property
    def engine_pid(self) -> int:
        """The engine process of this moment."""
        return int(self.events("the engine is ready")[-1]["pid"])

    def pages(self) -> dict[str, float]:
        """Pages of the first layer group by use; the newest figures, when nothing is running."""
        until = time.monotonic() + 30
        while time.monotonic() < until:
            values = self.metrics()
            if not values["saccade_requests_running"] and not values["saccade_requests_waiting"]:
                break
            time.sleep(0.05)
        states = ("used", "cached", "free")
        return {s: values[f'saccade_kv_pages{{group="0",state="{s}"}}'] for s in states}

    def metrics(self) -> dict[str, float]:
        """All samples by their full name."""
        lines = self.http.get("/metrics").text.splitlines()
        pairs = (line.rpartition(" ") for line in lines if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in pairs}

    def signal(self, number: int = signal.SIGTERM) -> None:
        """Sends a signal to the HTTP process."""
        self.process.send_signal(number)

    def wait(self, seconds: float = 20) -> int:
        """The exit status."""
        return self.process.wait(seconds)

    def stop(self) -> int:
        """Ends it in order; one that will not is killed."""
        self.http.close()
        if self.process.poll() is None:
            self.signal()
        try:
            return self.wait()
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.wait()
            raise


def completion(server: Running, prompt: Any = "def add", **options: Any) -> dict[str, Any]:
    """A whole reply of /v1/completions."""
    body = {"prompt": prompt, "max_tokens": 8, "temperature": 0, **options}
    reply = server.http.post("/v1/completions", json=body)
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


def streamed(server: Running, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The events of a stream, which must end as it should."""
    with server.http.stream("POST", path, json={**body, "stream": True}) as reply:
        assert reply.status_code == 200, reply.read()
        assert reply.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in reply.iter_lines() if line and not line.startswith(":")]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
