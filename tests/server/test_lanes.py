"""Threads beside the event loop: turns, and work that nobody waits for any more."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref

import pytest

from saccade.server.lanes import Lane


class Text:
    """Stands for megabytes."""


def test_results_and_errors_come_back() -> None:
    before = threading.active_count()

    async def both() -> None:
        lane = Lane("test", 2)
        assert await lane.run(lambda: 3) == 3
        with pytest.raises(ZeroDivisionError):
            await lane.run(lambda: 1 // 0)
        lane.close()
        assert threading.active_count() == before

    asyncio.run(both())


def test_work_of_who_has_left_is_neither_begun_nor_kept() -> None:
    async def leave() -> None:
        lane, go = Lane("test", 1), threading.Event()
        first = asyncio.create_task(lane.run(go.wait))
        done: list[str] = []
        text = Text()
        kept = weakref.ref(text)
        second = asyncio.create_task(lane.run(lambda text=text: done.append(str(text))))
        third = asyncio.create_task(lane.run(lambda: done.append("third")))
        del text
        await asyncio.sleep(0.05)
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        del second
        await asyncio.sleep(0)  # the loop has something of it in its hands
        gc.collect()
        assert kept() is None  # though the first still blocks the thread
        lane.close()  # and this waits for nothing
        go.set()
        await asyncio.gather(first, third)
        assert done == ["third"]

    asyncio.run(leave())
