"""EngineClient over lives of the engine process that end as they are told."""

from __future__ import annotations

import asyncio
import logging
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import zmq

from saccade.server import client as module
from saccade.server.client import EngineClient, State
from saccade.server.process import private_folder
from saccade.server.wire import Beat, EngineInfo, LoadFailed, Report, Start, decode_report, encode


@pytest.mark.parametrize("lost", [0, 1])
def test_a_failure_to_load_is_final_whichever_life_reports_it(
    monkeypatch: pytest.MonkeyPatch, lost: int
) -> None:
    """The report of a life may be lost; the next one is as good, and none is tried for ever."""
    lives: list[None] = []

    class Process:
        """Dies at once; all but the first `lost` say why."""

        beaten = moved = 0.0
        pid = 1

        def __init__(self, start: Start, on_report: Callable[[Report], None]) -> None:
            self._tell = on_report

        async def launch(self) -> None:
            lives.append(None)

        async def wait(self) -> int:
            if len(lives) > lost and client.failure is None:
                self._tell(LoadFailed("no such model", ours=True))
            return 1

        def receive(self) -> None: ...

        def kill(self) -> None: ...

        def close(self) -> None: ...

        async def stop(self) -> None: ...

    monkeypatch.setattr(module, "EngineProcess", Process)
    client = EngineClient("model", {})

    async def live() -> State:
        client.start()
        try:
            return await asyncio.wait_for(client.settled(), 20)
        finally:
            await client.close()

    assert asyncio.run(live()) is State.FAILED
    assert len(lives) == lost + 1 and client.failure is not None


FAILING = """
import sys
from saccade.server import worker
def load(start):
    print("fails now", file=sys.stderr, flush=True)
    raise ValueError("no weights")
worker.load = load
worker.main()
"""


def test_a_failure_to_load_is_heard_by_one_who_listens_late() -> None:
    """The process does not end, and take its report with it, before that has been sent."""
    folder = private_folder()
    reports: list[Report] = []
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    packed = encode(Start("model", {}))
    command = [sys.executable, "-c", FAILING, str(folder)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stderr=pipe) as process:
        try:
            assert process.stdin is not None and process.stderr is not None
            process.stdin.write(len(packed).to_bytes(4, "little") + packed)
            process.stdin.flush()
            assert b"fails now" in process.stderr.readline()
            time.sleep(0.3)
            socket = context.socket(zmq.PULL)
            socket.bind(f"ipc://{folder}/up")
            while not reports and socket.poll(10_000):
                report = decode_report(socket.recv())
                if not isinstance(report, Beat):
                    reports.append(report)
            assert process.wait(10) == 1
        finally:
            process.kill()
            context.destroy(linger=0)
            shutil.rmtree(folder)
    assert reports == [LoadFailed("no weights", ours=True)]


class Lives:
    """In place of EngineProcess: starts that fail as `faults` say (None: one that runs)."""

    beaten = moved = 0.0
    pid = 1
    faults: list[Exception | None]
    dead: asyncio.Event

    def __init__(self, start: Start, on_report: Callable[[Report], None]) -> None:
        self._tell = on_report
        self._fault = self.faults.pop(0)
        if isinstance(self._fault, FileNotFoundError):
            raise self._fault

    async def launch(self) -> None:
        if self._fault is not None:
            raise self._fault
        self.beaten = self.moved = time.monotonic()

    async def wait(self) -> int:
        if self._fault is None:
            self._fault = EOFError()  # asked again, it is dead
            self._tell(INFO)
            await self.dead.wait()
            self.dead.clear()
        return -9

    def receive(self) -> None: ...

    def kill(self) -> None: ...

    def close(self) -> None: ...

    async def stop(self) -> None: ...


INFO = EngineInfo(
    **dict.fromkeys(("folder", "attention", "dtype"), "x"),
    **dict.fromkeys(
        ("vocab_size", "hidden_size", "max_model_len", "max_num_seqs", "num_tokens", "page_size"), 1
    ),
    **{name: [] for name in ("pages", "windows", "eos_token_ids")},
    load_s=0.1,
)


def test_a_start_that_fails_is_said_and_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither a full disk nor a lack of descriptors or processes ends the service for good."""
    faults = [None, FileNotFoundError(2, "no folder"), BlockingIOError(11, "no process"), None]
    monkeypatch.setattr(Lives, "faults", faults, raising=False)
    monkeypatch.setattr(module, "EngineProcess", Lives)
    monkeypatch.setattr(module, "_MAX_WAIT_S", 0.01)
    monkeypatch.setattr(module, "log", logging.getLogger("tests.life"))

    async def live() -> None:
        monkeypatch.setattr(Lives, "dead", asyncio.Event(), raising=False)
        client = EngineClient("model", {})
        client.start()
        assert await asyncio.wait_for(client.settled(), 5) is State.READY
        Lives.dead.set()
        await asyncio.sleep(0.05)
        until = time.monotonic() + 10
        while client.state is not State.READY and time.monotonic() < until:
            await asyncio.sleep(0.01)
        assert client.state is State.READY and client.restarts == 1 and not faults
        await client.close()

    asyncio.run(live())
    lines = [r for r in caplog.records if r.message == "the engine process cannot be started"]
    assert [vars(line)["reason"] for line in lines] == [
        "[Errno 2] no folder",
        "[Errno 11] no process",
    ]


def test_a_server_whose_engine_cannot_be_started_says_so_and_ends(tmp_path: Path) -> None:
    """Here: there is no room for its private folder. It does not listen to no avail."""
    code = (
        "import sys, tempfile\n"
        "def none(**_): raise FileNotFoundError(2, 'No usable temporary directory found')\n"
        "tempfile.mkdtemp = none\n"
        "from saccade.server.cli import main\n"
        "sys.exit(main(['serve', 'demo', '--port', '0']))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "No usable temporary directory" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_start_without_descriptors_fails_before_anything_is_opened(tmp_path: Path) -> None:
    """ZeroMQ ends the process where it finds none; and what was opened is closed again."""
    code = (
        "import asyncio, os, resource, sys, tempfile\n"
        "from saccade.server.process import EngineProcess\n"
        "from saccade.server.wire import Start\n"
        "tempfile.tempdir = sys.argv[1]\n"
        "async def main():\n"
        "    before = len(os.listdir('/proc/self/fd'))\n"
        "    resource.setrlimit(resource.RLIMIT_NOFILE, (before + 12, before + 12))\n"
        "    try: EngineProcess(Start('demo'), print)\n"
        "    except OSError as error: print(error.errno)\n"
        "    print(len(os.listdir('/proc/self/fd')) - before, os.listdir(sys.argv[1]))\n"
        "asyncio.run(main())"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split() == ["24", "0", "[]"], done.stderr
