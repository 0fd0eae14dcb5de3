"""An exception at every hook of the engine, over HTTP: a poisoned request fails alone."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from saccade.benchmarks.http_client import Reply

from .conftest import Serve
from .injected.sitecustomize import HOOKS, TOGETHER, poison
from .load import Body, accounts, start, whole
from .running import Running, completion

GOOD: list[Body] = [
    {"prompt": [50, 51, 52], "max_tokens": 40, "temperature": 0, "ignore_eos": True},
    {"prompt": "def add", "max_tokens": 40, "n": 2, "seed": 3, "temperature": 0.8},
    {
        "prompt": [60] * 50,
        "max_tokens": 30,
        "temperature": 0,
        "structured_outputs": {"regex": "[0-9]{30}"},
    },
]


@pytest.fixture
def spoiled(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> Running:
    """A server whose engine raises at hooks, when it sees certain prompts."""
    folder = Path(__file__).parent / "injected"
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("PYTHONPATH", path)
    return serve()


async def beside(server: Running, bad: list[Body]) -> tuple[list[Reply], list[Reply]]:
    """Replies to the good requests and to the bad ones, all at once."""
    good = [asyncio.create_task(whole(server, body)) for body in GOOD]
    exchange = await start(server, GOOD[0] | {"stream": True})
    await exchange.begun  # something runs already
    others = [asyncio.create_task(whole(server, body)) for body in bad]
    await exchange.ended
    return [await each for each in good], [await each for each in others]


def told(reply: Reply) -> Any:
    """The error that a client gets: as a status, or as the last event of a stream."""
    return reply.json["error"] if reply.status != 200 else reply.events[-1][1]["error"]


def test_a_poisoned_request_fails_alone(spoiled: Running) -> None:
    right = [completion(spoiled, **body)["choices"] for body in GOOD]
    before = accounts(spoiled)
    for number, name in enumerate(HOOKS):
        body: Body = {"prompt": poison(number), "max_tokens": 5}
        bad = [body, body | {"stream": True}, body | {"n": 2, "stream": True}]
        good, failed = asyncio.run(asyncio.wait_for(beside(spoiled, bad), 60))
        assert [reply.json.get("choices") for reply in good] == right, name
        for reply in failed:
            assert told(reply)["code"] == "engine_error", (name, reply.status, reply.body)
            assert reply.status in (200, 500) and b"secret" not in reply.body, (name, reply.body)
        assert accounts(spoiled) == before, name
    assert spoiled.http.get("/health").json() == {"status": "ready", "restarts": 0}
    logged = "\n".join(json.dumps(line) for line in spoiled.lines())
    for where, method, _ in HOOKS.values():
        assert f"injected: secret of {where.partition(':')[2]}.{method}" in logged


def test_a_fault_that_belongs_to_nobody_ends_in_a_restart(spoiled: Running) -> None:
    right = [completion(spoiled, **body)["choices"] for body in GOOD]
    for count, number in enumerate(range(len(HOOKS), len(HOOKS) + len(TOGETHER)), 1):
        bad = [{"prompt": poison(number), "max_tokens": 5}]
        good, failed = asyncio.run(asyncio.wait_for(beside(spoiled, bad), 60))
        assert {reply.status for reply in failed} == {503}
        assert {reply.status for reply in good} <= {200, 503}
        spoiled.wait_for("the engine is ready", 1 + count)
        assert [completion(spoiled, **body)["choices"] for body in GOOD] == right
        assert spoiled.http.get("/health").json() == {"status": "ready", "restarts": count}
