"""Soak: whoever comes and goes, and however, pages and places are where they were afterwards."""

from __future__ import annotations

import asyncio
from pathlib import Path
from random import Random
from typing import Any

from saccade.engine.params import SamplingParams
from saccade.server.client import EngineClient, State
from saccade.server.wire import Checked

from .conftest import Serve
from .load import Body, accounts, amount, check_quiet, in_turn, random_request, start
from .running import Running, completion

GROWTH = (
    48 << 20
)  # bytes that a process may grow by: caches of texts, of grammars, of the C library


def resident(pid: int) -> int:
    """Bytes of memory that a process holds."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no process {pid}")


async def cancelled(server: Running, random: Random) -> str:
    """A random request, whose client may leave at any time; how it went."""
    body = random_request(random, 60) | {"stream": random.random() < 0.7}
    id = f"s{random.randrange(10**9)}"
    exchange = await start(server, body, **{"x-request-id": id})
    way = random.choice(["leave", "leave", "begin", "abort", "stay"])
    if way == "begin":
        await exchange.begun
    elif way != "stay":
        await asyncio.sleep(random.choice([0, 0, 0.005, 0.05]))
    if way == "abort":
        await asyncio.to_thread(server.http.post, "/abort", json={"request_id": id})
    if way in ("abort", "stay"):
        await asyncio.wait_for(exchange.ended, 60)
    else:
        exchange.leave()
    return way


def test_random_cancellation_leaves_nothing_behind(serve: Serve) -> None:
    server = serve("--kv-cache-memory", "480KiB")
    completion(server)
    before, count = accounts(server), amount(120, 2000)
    random = Random(11)
    jobs: list[Any] = [lambda: cancelled(server, random) for _ in range(count)]
    ways = asyncio.run(in_turn(jobs, 24))
    assert len(ways) == count and len(set(ways)) == 4
    print({way: ways.count(way) for way in set(ways)})
    check_quiet(server, before)


async def aborted(server: Running, body: Body, events: int) -> int:
    """A stream whose client leaves after so many events; how many it saw."""
    exchange = await start(server, body)
    await asyncio.wait_for(exchange.begun, 60)
    while exchange.events < events and not exchange.ended.done():
        await asyncio.sleep(0.001)
    exchange.leave()
    return exchange.events


def test_aborted_streams_leave_nothing_behind(serve: Serve) -> None:
    server = serve()
    body: Body = {"prompt": "def add", "max_tokens": 400, "ignore_eos": True, "stream": True}
    warm: list[Any] = [lambda: aborted(server, body, 2) for _ in range(50)]
    asyncio.run(in_turn(warm, 16))
    before, count = accounts(server), amount(200, 10_000)
    pids = (server.process.pid, server.engine_pid)
    sizes = [resident(pid) for pid in pids]
    jobs: list[Any] = [lambda k=k: aborted(server, body, 1 + k % 3) for k in range(count)]
    seen = asyncio.run(in_turn(jobs, 16))
    assert len(seen) == count and min(seen) >= 1
    check_quiet(server, before)
    grown = [resident(pid) - size for pid, size in zip(pids, sizes, strict=True)]
    print(f"{count} streams aborted, grown by {[each >> 10 for each in grown]} KiB")
    assert max(grown) < GROWTH


def test_a_client_that_leaves_frees_its_pages_within_one_step(tiny: Path) -> None:
    async def run() -> tuple[Checked, Checked]:
        options = {"page_size": 16, "kv_cache_memory": 8 << 20}
        client = EngineClient(str(tiny), options)
        client.start()
        try:
            assert await client.settled() is State.READY
            inbox = client.inbox()
            params = SamplingParams(max_tokens=400, ignore_eos=True)
            client.submit(inbox, 0, [40] * 100, params)
            while not await inbox.take(10):
                pass
            first = asyncio.create_task(client.check())
            await asyncio.sleep(0)  # it is on its way, and the engine keeps the order
            inbox.close()
            second = asyncio.create_task(client.check())
            return await first, await second
        finally:
            await client.close()

    before, after = asyncio.run(run())
    assert before.error is None and after.error is None
    assert before.stats.pages_in_use != [0] and after.stats.pages_in_use == [0]
    assert after.stats.steps - before.stats.steps <= 1


def test_over_http_the_engine_hears_of_it_soon(serve: Serve) -> None:
    server = serve()
    body: Body = {"prompt": "def add", "max_tokens": 400, "ignore_eos": True, "stream": True}
    asyncio.run(aborted(server, body, 2))
    accounts(server)
    before = server.metrics()["saccade_engine_steps_total"]
    seen = asyncio.run(aborted(server, body, 5))
    accounts(server)
    steps = server.metrics()["saccade_engine_steps_total"] - before
    print(f"{seen} tokens seen, {steps:.0f} steps")
    assert steps < seen + 100  # of 400: a busy machine may sleep for a while
