"""Hostile neighbours: whatever others ask for, and however they leave, an answer is the one that
the request would have had alone.
"""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

from .conftest import Serve
from .load import accounts, amount, check_quiet, in_turn, random_request, start, whole
from .running import Running

ROUND = 50  # requests that are told alone and in company before the next ones
BAD: list[dict[str, Any]] = [
    {"prompt": [5], "temperature": -1},
    {"prompt": [10**6]},
    {"prompt": "x", "structured_outputs": {"regex": "("}},
    {"prompt": [5] * 600},
    {"prompt": "x", "logit_bias": {"400": 1}},
    {"prompt": "x", "attention": "nsa"},
]


async def tell(server: Running, body: dict[str, Any]) -> list[Any]:
    """The choices of a whole reply."""
    reply = await whole(server, body)
    assert reply.status == 200, reply.body
    choices: list[Any] = reply.json["choices"]
    return choices


async def disturb(server: Running, random: Random, stop: asyncio.Event) -> int:
    """Asks for everything and leaves in every way, until told to stop; how often."""
    count = 0
    while not stop.is_set():
        count += 1
        way = random.randrange(4)
        if way == 0:
            assert (await whole(server, random.choice(BAD))).status == 400
            continue
        body = random_request(random, 300) | {"stream": way < 3}
        id = f"n{random.randrange(10**9)}"
        exchange = await start(server, body, **{"x-request-id": id})
        if way == 1:
            await exchange.begun
        await asyncio.sleep(random.choice([0, 0.002, 0.02, 0.1]))
        if random.random() < 0.3:
            await asyncio.to_thread(server.http.post, "/abort", json={"request_id": id})
            await exchange.ended
        else:
            exchange.leave()
    return count


async def compare(server: Running, random: Random, count: int) -> tuple[list[Any], int]:
    """Bodies whose answers differ in company, and how often somebody disturbed."""
    bodies = [random_request(random, 120) for _ in range(count)]
    alone = [await tell(server, body) for body in bodies]
    stop = asyncio.Event()
    others = [asyncio.create_task(disturb(server, Random(random.random()), stop)) for _ in range(4)]
    beside = await in_turn([lambda b=b: tell(server, b) for b in bodies], 12)
    stop.set()
    pairs = zip(bodies, alone, beside, strict=True)
    return [pair for pair in pairs if pair[1] != pair[2]], sum(await asyncio.gather(*others))


def test_neighbours_change_nothing(serve: Serve) -> None:
    server = serve("--kv-cache-memory", "480KiB")  # so little that requests are put back
    random = Random(7)
    before = accounts(server)
    told = disturbed = 0
    while told < amount(60, 500):
        count = min(ROUND, amount(60, 500) - told)
        differ, times = asyncio.run(compare(server, random, count))
        assert not differ, differ[:2]
        told, disturbed = told + count, disturbed + times
    values = server.metrics()
    assert disturbed > told / 4
    assert values["saccade_preemptions_total"] > 0
    assert values['saccade_requests_finished_total{finished_reason="abort"}'] > 0
    put_back = values["saccade_preemptions_total"]
    print(f"{told} answers, {disturbed} disturbances, {put_back:.0f} put back, 0 differ")
    check_quiet(server, before)
