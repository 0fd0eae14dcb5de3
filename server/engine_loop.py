"""EngineLoop: takes orders between the engine's steps, and reports what each step brought."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import zmq

from . import wire
from .compiling import BusyError, Compiling
from .deltas import FAILED, LiveRequest
from .wire import Abort, Add, Check, Checked, EngineStats, Refused

if TYPE_CHECKING:
    from ..engine.engine import Engine
    from ..engine.grammar_state import GrammarState
    from ..engine.params import SamplingParams
    from ..engine.structure import Structure

_STATS_S = 0.25
_IDLE_POLL_MS = 1000
Socket = zmq.Socket[bytes]
log = logging.getLogger("saccade.engine")


class EngineLoop:
    """Takes orders between steps, and reports what each step brought."""

    def __init__(self, engine: Engine, orders: Socket, reports: Socket):
        self._engine = engine
        self._orders = orders
        self._reports = reports
        self._live: dict[str, LiveRequest] = {}
        self._steps = 0
        self._told = 0.0  # when the last stats were sent
        self._busy_s = self._told_busy_s = 0.0
        self._told_steps = 0
        self._stopping = False
        self._compiling = Compiling(engine.grammars)
        self._poller = zmq.Poller()
        self._poller.register(orders, zmq.POLLIN)
        self._poller.register(self._compiling.descriptor, zmq.POLLIN)

    def serve(self) -> None:
        """Until a Stop order comes. Raises for a fault that belongs to no request."""
        while not self._stopping:
            idle = not self._engine.scheduler.has_work
            if idle:
                self.tell_stats()
                self._poller.poll(_IDLE_POLL_MS)
            self._take_orders()
            self._take_compiled()
            if self._engine.scheduler.has_work:
                self._step()

    def _take_orders(self) -> None:
        while True:
            try:
                packed = self._orders.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            order = wire.decode_order(packed)
            if isinstance(order, Add):
                self._add(order)
            elif isinstance(order, Abort):
                self._abort(order.ids)
            elif isinstance(order, Check):
                self._check()
            else:
                self._stopping = True
                return

    def _add(self, order: Add) -> None:
        from ..engine.params import SamplingParams

        try:
            params = SamplingParams(**unpack(order.params))
            if params.structure is None:
                self._start(order, params)
            else:
                self._compiling.begin(order, params)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this request's
            self._refuse(order.id, error)

    def _take_compiled(self) -> None:
        for order, params, work in self._compiling.take():
            try:
                self._start(order, params, work.result())
            except Exception as error:  # noqa: BLE001 - whatever it is, it is this request's
                self._refuse(order.id, error)

    def _start(
        self, order: Add, params: SamplingParams, grammar: GrammarState | None = None
    ) -> None:
        generation = self._engine.add(
            wire.unpack_ids(order.prompt),
            params,
            request_id=order.id,
            priority=order.priority,
            cache_salt=order.cache_salt,
            attention=order.attention,
            grammar=grammar,
        )
        self._live[order.id] = LiveRequest(generation)

    def _refuse(self, id: str, error: Exception) -> None:
        from ..engine.errors import CapacityError, SaccadeError

        if isinstance(error, BusyError):
            message = "Too many requests wait for their response format to be compiled."
            self._report(Refused(id, message, busy=True))
        elif isinstance(error, SaccadeError):
            param = getattr(error, "param", None)
            self._report(Refused(id, str(error), param, isinstance(error, CapacityError)))
        else:
            log.error("a request could not be added", exc_info=error, extra={"request": id})
            self._report(Refused(id, FAILED, fault=True))

    def _abort(self, ids: list[str]) -> None:
        ended = [self._live.pop(each) for each in ids if each in self._live]
        for request in ended:
            self._engine.abort(request.id)
        deltas = [delta for request in ended if (delta := request.news()) is not None]
        for each in ids:
            if (waiting := self._compiling.cancel(each)) is not None:
                deltas.append(aborted(each, waiting[1].n))
        if deltas:
            self._report(wire.Deltas(deltas))

    def _step(self) -> None:
        began = time.perf_counter()
        touched = self._engine.step()
        self._steps += 1
        self._busy_s += time.perf_counter() - began
        deltas = []
        for generation in touched:
            request = self._live.get(generation.id)
            delta = request.news() if request is not None else None
            if delta is not None:
                deltas.append(delta)
                if delta.end is not None:
                    del self._live[generation.id]
                    self._engine.abort(generation.id)  # unless it has ended by itself
        if deltas:
            self._report(wire.Deltas(deltas))
        if time.monotonic() - self._told > _STATS_S:
            self.tell_stats()

    def _check(self) -> None:
        error = None
        try:
            self._engine.scheduler.check_integrity()
        except Exception as fault:
            log.exception("the accounts contradict each other")
            error = str(fault)
        self._report(Checked(error, self._stats()))

    def tell_stats(self) -> None:
        """Sends a snapshot."""
        self._told = time.monotonic()
        self._report(self._stats())
        self._told_busy_s, self._told_steps = self._busy_s, self._steps

    def _stats(self) -> EngineStats:
        found = self._engine.scheduler.stats()
        steps = self._steps - self._told_steps
        return EngineStats(
            running=found.running,
            waiting=found.waiting,
            total_pages=list(found.total_pages),
            free_pages=list(found.free_pages),
            idle_pages=list(found.idle_pages),
            cached_pages=list(found.cached_pages),
            evictions=found.evictions,
            lookup_tokens=found.lookup_tokens,
            hit_tokens=found.hit_tokens,
            preemptions=found.preemptions,
            forks=found.forks,
            copies=found.copies,
            finished=dict(found.finished),
            attention=self._engine.reads.as_dict(),
            steps=self._steps,
            step_s=(self._busy_s - self._told_busy_s) / steps if steps else 0.0,
            busy_s=self._busy_s,
        )

    def _report(self, report: wire.Report) -> None:
        self._reports.send(wire.encode(report))


def aborted(id: str, n: int) -> wire.Delta:
    """The last words of a request of n completions that was never begun."""
    from ..engine.outputs import Timings

    pieces = [wire.Piece(index, "", [], "abort") for index in range(n)]
    return wire.Delta(id, 0, pieces, end=wire.End(asdict(Timings()), {}, 0))


def unpack(params: dict[str, Any]) -> dict[str, Any]:
    """Keywords of SamplingParams as they were before the wire."""
    found = params.get("structure")
    return params if found is None else params | {"structure": unpack_structure(found)}


def unpack_structure(found: dict[str, Any]) -> Structure:
    """A structure as it was before the wire."""
    from ..engine.structure import Structure

    other = found.get("otherwise")
    otherwise = None if other is None else unpack_structure(other)
    return Structure(**{**found, "markers": tuple(found["markers"]), "otherwise": otherwise})
