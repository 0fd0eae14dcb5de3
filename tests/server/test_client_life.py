"""EngineClient over lives of the engine process that end as they are told."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
import zmq

from saccade.server import client as module
from saccade.server.client import EngineClient, State
from saccade.server.process import private_folder
from saccade.server.wire import Beat, LoadFailed, Report, Start, decode_report, encode


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
