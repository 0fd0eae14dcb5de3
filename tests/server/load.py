"""Load for tests: how much of it, random requests, and clients that come and go on one event loop.

SACCADE_TEST_LOAD=full runs every count that the documentation promises; `make test` a small part.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Iterable
from random import Random
from typing import Any, TypeVar

from saccade.benchmarks.http_client import Exchange, Reply, Target, read, send

from .running import Running

Body = dict[str, Any]
T = TypeVar("T")
FULL = os.environ.get("SACCADE_TEST_LOAD") == "full"
PATH = "/v1/completions"

STRUCTURES: list[Body] = [
    {"regex": "[0-9]{2,12}"},
    {"choice": ["alpha", "beta", "gamma delta"]},
    {"json_object": True},
    {"json": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}},
]


def amount(quick: int, full: int) -> int:
    """How many: a few, or as many as promised."""
    return full if FULL else quick


def random_request(random: Random, longest: int = 40) -> Body:
    """Any mix of what a request may ask for; the same seed gives the same request."""
    start = random.randrange(40, 60)
    prompt = [start + number % 7 for number in range(random.randrange(1, 90))]
    body: Body = {"prompt": prompt, "seed": random.randrange(1000)}
    body["max_tokens"] = random.randrange(1, longest)
    body["temperature"] = random.choice([0, 0, 0.7, 1.3])
    options: list[Body] = [
        {"n": random.choice([2, 3])},
        {"presence_penalty": random.uniform(-2, 2)},
        {"frequency_penalty": random.uniform(-2, 2)},
        {"repetition_penalty": random.uniform(0.8, 1.6)},
        {"logit_bias": {str(random.randrange(320)): random.uniform(-100, 100) for _ in range(4)}},
        {"stop": random.sample(["a", "e", "\n", "ad", "re", "1", "}"], 2)},
        {"stop_token_ids": random.sample(range(320), 3)},
        {"structured_outputs": random.choice(STRUCTURES)},
        {"logprobs": random.choice([0, 3])},
        {"top_k": random.choice([1, 5, 40])},
        {"top_p": random.uniform(0.2, 1)},
        {"min_p": random.uniform(0, 0.3)},
        {"min_tokens": random.randrange(body["max_tokens"] + 1)},
        {"ignore_eos": True},
        {"echo": True},
        {"attention": random.choice(["dense", "window(32)", "lessismore(budget=64)"])},
        {"priority": random.choice([-1, 0, 3])},
    ]
    for option in random.sample(options, random.randrange(5)):
        body |= option
    return body


def target_of(server: Running) -> Target:
    """Where it listens."""
    return Target.of(server.url)


async def start(server: Running, body: Body, **headers: str) -> Exchange:
    """Sends a request for a completion."""
    return await send(target_of(server), PATH, body, headers)


async def whole(server: Running, body: Body, **headers: str) -> Reply:
    """Sends it and waits for the reply."""
    exchange = await start(server, body, **headers)
    await asyncio.wait_for(exchange.ended, 120)
    return read(exchange)


async def in_turn(jobs: Iterable[Callable[[], Coroutine[Any, Any, T]]], at_once: int) -> list[T]:
    """Runs all jobs, so many at a time; their results in order."""
    gate = asyncio.Semaphore(at_once)

    async def run(job: Callable[[], Coroutine[Any, Any, T]]) -> T:
        async with gate:
            return await job()

    return list(await asyncio.gather(*[run(job) for job in jobs]))


def accounts(server: Running) -> dict[str, float]:
    """What must be as it was when nobody is served any more."""
    pages = server.pages()
    values = server.metrics()
    names = ("requests_running", "requests_waiting", "sequences_in_flight", "queued_prompt_tokens")
    found = {name: values[f"saccade_{name}"] for name in names}
    return found | {"used": pages["used"], "takeable": pages["free"] + pages["cached"]}


def check_quiet(server: Running, before: dict[str, float]) -> None:
    """No page and no place is missing, and the engine's process is the first one."""
    assert accounts(server) == before
    assert before["used"] == before["sequences_in_flight"] == before["queued_prompt_tokens"] == 0
    assert server.http.get("/health").json() == {"status": "ready", "restarts": 0}
    wrong = [line for line in server.lines() if "traceback" in line or line["level"] == "error"]
    assert not wrong, wrong[:3]
