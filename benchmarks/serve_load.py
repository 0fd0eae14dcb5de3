"""Requests for a server under load, how they are sent, and what became of each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from random import Random
from typing import Any

from .http_client import Exchange, Reply, Target, read, send

_WORDS = "the a of and to in is that for it with as on be at by this from or an are not".split()
PATIENCE_S = 1800.0


@dataclass(frozen=True)
class Shape:
    """Tokens of a prompt and of an answer. text: words, whose tokens the server counts."""

    input_tokens: int
    output_tokens: int
    text: bool = False

    def line(self) -> str:
        """In a few words."""
        kind = "words" if self.text else "tokens"
        return f"prompts of {self.input_tokens} {kind}, answers of {self.output_tokens} tokens"


@dataclass(frozen=True)
class Outcome:
    """One request: times in seconds from when it was sent; `gaps` between pieces of its answer."""

    status: int
    sent: float  # time.perf_counter()
    ttft_s: float = 0.0
    total_s: float = 0.0
    gaps: list[float] = field(default_factory=list)
    input_tokens: int = 0
    output_tokens: int = 0
    error: str = ""

    @property
    def ok(self) -> bool:
        """Whether the whole answer came."""
        return not self.error

    @property
    def tpot_s(self) -> float:
        """Mean time of a token after the first."""
        return (self.total_s - self.ttft_s) / max(1, self.output_tokens - 1)


@dataclass(frozen=True)
class Load:
    """A server, and what is asked of it. patience_s: how long a request may take in all."""

    target: Target
    model: str
    shape: Shape
    seed: int = 0
    max_model_len: int | None = None
    patience_s: float = PATIENCE_S

    def shaped(self, input_tokens: int, output_tokens: int) -> Load:
        """The same with other lengths."""
        return replace(self, shape=replace(
            self.shape, input_tokens=input_tokens, output_tokens=output_tokens
        ))  # fmt: skip

    def body(self, number: int) -> dict[str, Any]:
        """The body of a request; every number has a prompt of its own, so that no prefix hits."""
        random = Random(self.seed * 1_000_003 + number)
        count = self.shape.input_tokens
        prompt: Any = [random.randrange(32, 256) for _ in range(count)]  # in any vocabulary
        if self.shape.text:
            prompt = " ".join(random.choice(_WORDS) for _ in range(count))
        return {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": self.shape.output_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }

    async def start(self, number: int) -> Exchange:
        """Sends one request."""
        return await send(self.target, "/v1/completions", self.body(number))

    async def one(self, number: int) -> Exchange | Outcome:
        """Sends one request and waits for its end; at once what became of it when nobody took it.

        A server that is gone costs the requests that it does not answer, and not those before.
        """
        began = time.perf_counter()
        try:
            exchange = await asyncio.wait_for(self.start(number), self.patience_s)
        except OSError as error:
            return Outcome(0, began, error=f"no connection: {error}")
        if await wait_end(exchange, self.patience_s):
            return exchange
        return Outcome(0, exchange.sent, error=f"no end within {self.patience_s:g} s")


async def wait_end(exchange: Exchange, patience_s: float) -> bool:
    """Waits for the end of a request; False when it does not come, and nobody waits any more."""
    try:
        await asyncio.wait_for(exchange.ended, patience_s)
    except TimeoutError:
        exchange.leave()
        return False
    return True


def outcome(exchange: Exchange) -> Outcome:
    """What became of a request."""
    try:
        return _read(exchange, read(exchange))
    except (ValueError, AttributeError) as error:
        return Outcome(200, exchange.sent, error=f"no stream of completions: {error!s:.200}")


def _read(exchange: Exchange, reply: Reply) -> Outcome:
    """ValueError or AttributeError for events that are not JSON, or not objects."""
    if reply.status == 0:
        return Outcome(0, exchange.sent, error="the connection broke before a reply")
    if reply.status != 200:
        text = reply.body[:200].decode(errors="replace")
        return Outcome(reply.status, exchange.sent, error=text or f"status {reply.status}")
    times, usage, error = [], {}, "" if reply.whole else "the connection broke"
    if not error and b"[DONE]" not in reply.body:
        error = "the stream ended without [DONE]"
    for came, event in reply.events:
        usage = event.get("usage") or usage
        error = str(event["error"]) if "error" in event else error
        times += [came] if event.get("choices") else []
    if not times:
        return Outcome(200, exchange.sent, error=error or "an empty stream")
    return Outcome(
        200,
        exchange.sent,
        times[0] - exchange.sent,
        times[-1] - exchange.sent,
        [b - a for a, b in pairwise(times)],
        usage.get("prompt_tokens", 0),
        usage.get("completion_tokens", len(times)),
        error,
    )


@dataclass(frozen=True)
class Run:
    """One setting's requests. concurrency, rate: what was set; duration: first send to end."""

    outcomes: list[Outcome]
    duration: float
    concurrency: int | None = None
    rate: float | None = None


async def closed(load: Load, requests: int, concurrency: int, first: int = 0) -> Run:
    """So many at once: as soon as one ends, another begins."""
    numbers = iter(range(first, first + requests))
    done: list[Exchange | Outcome] = []

    async def client() -> None:
        for number in numbers:
            done.append(await load.one(number))

    return await _timed(done, [client() for _ in range(concurrency)], concurrency=concurrency)


async def open_loop(
    load: Load, requests: int, rate: float, first: int = 0, at_most: int | None = None
) -> Run:
    """Arrivals at random (Poisson), whether or not earlier ones have ended.

    at_most: so many are under way at once, and the others wait, unmeasured, for their turn.
    """
    random, at = Random(load.seed), 0.0
    done: list[Exchange | Outcome] = []
    turns = asyncio.Semaphore(at_most or requests)

    async def client(number: int, delay: float) -> None:
        await asyncio.sleep(delay)
        async with turns:
            done.append(await load.one(number))

    clients = []
    for number in range(first, first + requests):
        clients.append(client(number, at))
        at += random.expovariate(rate)
    return await _timed(done, clients, rate=rate, concurrency=at_most)


async def _timed(done: list[Exchange | Outcome], clients: Sequence[Any], **about: Any) -> Run:
    began = time.perf_counter()
    await asyncio.gather(*clients)
    duration = time.perf_counter() - began
    outcomes = [each if isinstance(each, Outcome) else outcome(each) for each in done]
    return Run(outcomes, duration, **about)
