"""Structures are compiled beside the engine's steps: nobody waits for another's schema."""

from __future__ import annotations

import itertools
import json
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import zmq

from saccade.engine.engine import Engine
from saccade.engine.grammar_state import GrammarState
from saccade.engine.structure import Structure
from saccade.server import wire
from saccade.server.compiling import MAX_WAITING
from saccade.server.engine_loop import EngineLoop

from .running import Running

SLOW_S = 0.6


def large_schema(name: str) -> dict[str, Any]:
    """About a second of compiling."""
    fields = {f"{name}{number}": {"type": "string"} for number in range(4000)}
    return {"type": "object", "properties": fields}


def test_a_stream_goes_on_while_schemas_are_compiled(server: Running) -> None:
    """A machine under load may stand still for once; what compiling stops, it stops each time."""
    tried = []
    for attempt in "abc":
        tried.append(longest_gap(server, attempt))
        gap, took = tried[-1]
        if gap < max(0.3, 0.5 * took):
            return
    raise AssertionError(tried)


def longest_gap(server: Running, name: str) -> tuple[float, float]:
    """(between two tokens of a stream while two schemas are compiled, of the quicker one), in s."""
    times: list[float] = []
    took: list[float] = []

    def compile_slowly(name: str) -> None:
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": large_schema(name)}}
        body = {"prompt": "x", "max_tokens": 1, "response_format": form}
        began = time.monotonic()
        reply = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
        took.append(time.monotonic() - began)
        assert reply.status_code in (200, 400), reply.text

    others = [threading.Thread(target=compile_slowly, args=(name * n,)) for n in (1, 2)]
    body: Any = {"prompt": "def add", "max_tokens": 450, "stream": True, "ignore_eos": True}
    with server.http.stream("POST", "/v1/completions", json=body) as reply:
        for line in reply.iter_lines():
            if line.startswith("data: {"):
                times.append(time.monotonic())
                if len(times) == 5:
                    for other in others:
                        other.start()
    for other in others:
        other.join()
    assert len(times) >= 450
    return max(after - before for before, after in itertools.pairwise(times)), min(took)


class Loop:
    """An engine's loop on a thread of its own, with structures that take their time."""

    def __init__(self, model: Path) -> None:
        self.engine = Engine(model, page_size=16, kv_cache_memory=8 << 20)
        compile = self.engine.grammars.compile

        def slowly(structure: Structure) -> GrammarState:
            time.sleep(SLOW_S)
            return compile(structure)

        self.engine.grammars.compile = slowly  # type: ignore[method-assign]
        context: Any = zmq.Context.instance()
        name = f"inproc://{id(self)}"
        self.orders, orders = context.socket(zmq.PUSH), context.socket(zmq.PULL)
        self.reports, reports = context.socket(zmq.PULL), context.socket(zmq.PUSH)
        for ours, theirs, end in ((self.orders, orders, "down"), (self.reports, reports, "up")):
            ours.bind(f"{name}/{end}")
            theirs.connect(f"{name}/{end}")
        self._thread = threading.Thread(target=EngineLoop(self.engine, orders, reports).serve)
        self._thread.start()

    def send(self, order: wire.Order) -> None:
        self.orders.send(wire.encode(order))

    def add(self, id: str, regex: str | None = None, **more: Any) -> None:
        params: dict[str, Any] = {"max_tokens": 4, **more}
        if regex is not None:
            params["structure"] = {"kind": "regex", "text": regex, "markers": ()}
        self.send(wire.Add(id, wire.pack_ids([40, 41, 42]), params))

    def until_end(self, id: str) -> Any:
        """The last report about a request: its last delta, or its refusal."""
        while self.reports.poll(20_000):
            report = wire.decode_report(self.reports.recv())
            if isinstance(report, wire.Refused) and report.id == id:
                return report
            for delta in report.items if isinstance(report, wire.Deltas) else ():
                if delta.id == id and delta.end is not None:
                    return delta
        raise AssertionError("no report")

    def stop(self) -> None:
        self.send(wire.Stop())
        self._thread.join(20)
        assert not self._thread.is_alive()


@pytest.fixture
def loop(tiny: Path) -> Any:
    made = Loop(tiny)
    yield made
    made.stop()


def test_others_overtake_a_request_that_is_compiled(loop: Loop) -> None:
    began = time.monotonic()
    loop.add("slow", "[0-9]{3}")
    loop.add("quick")
    assert loop.until_end("quick").pieces[0].finish == "length"
    assert time.monotonic() - began < SLOW_S
    assert loop.until_end("slow").pieces[0].finish == "stop"
    assert time.monotonic() - began > SLOW_S


def test_a_request_is_aborted_while_it_is_compiled(loop: Loop) -> None:
    began = time.monotonic()
    loop.add("slow", "[0-9]{3}", n=2)
    loop.add("quick")  # so that the order to compile was taken
    loop.until_end("quick")
    loop.send(wire.Abort(["slow"]))
    last = loop.until_end("slow")
    assert [piece.finish for piece in last.pieces] == ["abort", "abort"]
    assert time.monotonic() - began < SLOW_S
    time.sleep(SLOW_S)
    loop.add("after")
    loop.until_end("after")
    assert not loop.engine.scheduler.has_work  # what was compiled for nobody was not begun


def test_a_structure_that_cannot_be_is_refused_and_too_many_at_once_are(loop: Loop) -> None:
    loop.add("bad", "(")
    refusal = loop.until_end("bad")
    assert refusal.param == "structure" and "cannot be used" in refusal.message
    for number in range(MAX_WAITING + 1):
        loop.add(f"r{number}", f"[0-9]{{{number + 1}}}")
    refusal = loop.until_end(f"r{MAX_WAITING}")
    assert refusal.busy
    loop.send(wire.Abort([f"r{number}" for number in range(MAX_WAITING)]))


def test_the_refusal_names_the_field_that_the_client_used(server: Running) -> None:
    for field, form in (
        ("structured_outputs", {"regex": "("}),
        ("response_format", {"type": "json_schema", "json_schema": {"schema": {"type": "x"}}}),
    ):
        reply = server.http.post("/v1/completions", json={"prompt": "x", field: form})
        error = json.loads(reply.text)["error"]
        assert reply.status_code == 400 and error["param"] == field
        assert error["message"].startswith(f"{field}: ")
