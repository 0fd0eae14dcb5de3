"""EngineClient over lives of the engine process that end as they are told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from saccade.server import client as module
from saccade.server.client import EngineClient, State
from saccade.server.wire import LoadFailed, Report, Start


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
