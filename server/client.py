"""EngineClient: the engine as the routes see it. It keeps the engine process alive, and hands every
request its own news.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any

from . import wire
from .inbox import Inbox, RefusedError, UnavailableError
from .pace import Pace
from .process import EngineGoneError, EngineProcess
from .wire import Add, Checked, Delta, Deltas, EngineInfo, EngineStats, LoadFailed, Refused

if TYPE_CHECKING:
    from ..engine.params import SamplingParams

_TICK_S = 0.25
_LOAD_SILENCE_S = 60.0  # loading may hold the interpreter for long
_MAX_BACKOFF_S = 30.0  # between processes that die before they are ready
_MAX_WAIT_S = 5.0  # between tries to start one at all, which cost nothing
log = logging.getLogger("saccade.server")


class State(Enum):
    """What the engine is doing, as /health tells it."""

    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    FAILED = "failed"
    STOPPED = "stopped"


class EngineClient:
    """The engine in its process, restarted when it dies or hangs.

    silence_s: how long the process may be silent, or have work and not move, before it is killed;
    pace_s: readers are not woken more often (see Pace).
    """

    def __init__(
        self, model: str, options: dict[str, Any], silence_s: float = 8.0, pace_s: float = 0.0
    ) -> None:
        self.state = State.STARTING
        self.info: EngineInfo | None = None
        self.stats = EngineStats()
        self.restarts = 0
        self.failure: LoadFailed | None = None  # why it could not be loaded
        self._start = wire.Start(model, options)
        self._silence_s = silence_s
        self._pace = Pace(pace_s)
        self._process: EngineProcess | None = None
        self._inboxes: dict[str, Inbox] = {}  # by the engine's request id
        self._ids = itertools.count()
        self._task: asyncio.Task[None] | None = None
        self._begun = asyncio.Event()  # the first process, or a failure to start one
        self._settled = asyncio.Event()  # ready, failed or stopped for the first time
        self._checks: list[asyncio.Future[Checked]] = []
        self._load_s = 5.0

    # ---- life ----

    def start(self) -> None:
        """Begins to load; returns at once."""
        self._task = asyncio.get_running_loop().create_task(self._live(), name="engine")

    async def launched(self) -> None:
        """Waits until there is a process, or none can be had."""
        await self._begun.wait()

    async def settled(self) -> State:
        """Waits until the engine is ready, or will never be."""
        await self._settled.wait()
        return self.state

    async def close(self) -> None:
        """Ends the process; requests in flight fail. One that loads has nothing to put in order."""
        loading = self.state is not State.READY
        self.state = State.STOPPED
        self._settled.set()
        if self._process is not None:
            self.let_go()
            if loading:
                self._process.kill()
            await self._process.stop()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _live(self) -> None:
        """One process after the other."""
        failures = 0
        while self.state not in (State.STOPPED, State.FAILED):
            longest = _MAX_BACKOFF_S
            try:
                status = await self._life()
            except Exception as error:  # noqa: BLE001 - no descriptor, memory or room: it may pass
                failures, longest = failures + 1, _MAX_WAIT_S
                self._after_no_start(error)
            else:
                failures = 0 if self.state is State.READY else failures + 1
                self._after_death(status)
            if failures and self.state is State.RESTARTING:
                await asyncio.sleep(min(2.0 ** min(failures - 1, 9), longest))

    async def _life(self) -> int:
        """One process, from its start to its death; its exit status."""
        process = EngineProcess(self._start, self._take)
        try:
            await process.launch()
            self._process = process
            self._begun.set()
            return await self._watch(process)
        finally:
            process.kill()
            await process.wait()
            process.close()

    def _after_no_start(self, error: Exception) -> None:
        """Final for the first process; later, what is missing may come back."""
        what, why = "the engine process cannot be started", str(error) or type(error).__name__
        fault = error if self._process is not None else None  # it ran, and the error is in here
        if self._begun.is_set():
            log.error(what, exc_info=fault, extra={"reason": why})
        else:
            self.failure = LoadFailed(f"{what}: {why}", ours=True)
        self._after_life()
        self._begun.set()

    def _after_death(self, status: int) -> None:
        if self.state is not State.STOPPED and (self.info or not self.failure):
            log.error("the engine process died and is restarted", extra={"status": status})
            self.restarts += 1
        self._after_life()

    def _after_life(self) -> None:
        self._process = None
        if self.info is None and self.failure is not None:
            self.state = State.FAILED
            self._settled.set()
        elif self.state is not State.STOPPED:
            self.state = State.RESTARTING
        self.stats = EngineStats()
        self._start = wire.Start(self._start.model, self._start.options, verbose=False)
        message = "The engine stopped while it worked on this request."
        self._fail_all(UnavailableError(message, self._load_s))

    async def _watch(self, process: EngineProcess) -> int:
        """Until the process is dead, by itself or because it hung."""
        dead = asyncio.ensure_future(process.wait())
        try:
            last = time.monotonic()
            while not (await asyncio.wait([dead], timeout=_TICK_S))[0]:
                process.receive()
                now, late = time.monotonic(), time.monotonic() - last - _TICK_S
                last = now
                if late > 1:  # it was we who slept: what the engine said meanwhile says little
                    process.beaten, process.moved = now, max(process.moved, now - late)
                elif self._hangs(process, now):
                    log.error("the engine process hangs and is killed")
                    process.kill()
            return dead.result()
        finally:
            dead.cancel()

    def _hangs(self, process: EngineProcess, now: float) -> bool:
        if self.state is not State.READY:
            return now - process.beaten > _LOAD_SILENCE_S
        return now - min(process.beaten, process.moved) > self._silence_s

    # ---- requests ----

    @property
    def pid(self) -> int | None:
        """The engine process's id, None while there is none."""
        return None if self._process is None else self._process.pid

    @property
    def in_flight(self) -> int:
        """Prompts that have not ended."""
        return len(self._inboxes)

    def inbox(self) -> Inbox:
        """For a new HTTP request; whoever takes it closes it."""
        return Inbox(self._forget, self._pace)

    def submit(
        self,
        inbox: Inbox,
        number: int,
        prompt: Sequence[int],
        params: SamplingParams,
        *,
        priority: int = 0,
        cache_salt: str = "",
        attention: str | None = None,
    ) -> None:
        """Hands a prompt to the engine; its news come to `inbox` under this number.

        Raises UnavailableError while there is no engine.
        """
        self.check_ready()
        id = f"r{next(self._ids)}"
        packed = wire.pack_ids(prompt)
        self._send(Add(id, packed, wire.given(params), priority, cache_salt, attention))
        inbox.open[id] = number
        self._inboxes[id] = inbox

    def check_ready(self) -> EngineInfo:
        """What is known of the engine. UnavailableError while it is not there."""
        if self.state is not State.READY or self.info is None:
            message = f"The engine is not ready ({self.state.value}); try again later."
            raise UnavailableError(message, self._load_s)
        return self.info

    async def check(self) -> Checked:
        """Asks the engine to check its accounts."""
        self._send(wire.Check())
        answer: asyncio.Future[Checked] = asyncio.get_running_loop().create_future()
        self._checks.append(answer)
        return await answer

    def abort(self, ids: Sequence[str]) -> None:
        """Ends requests; their readers get a last delta with the reason "abort"."""
        with contextlib.suppress(UnavailableError):
            self._send(wire.Abort(list(ids)))

    def let_go(self) -> None:
        """Tells all readers at once that the server ends, whatever the engine does."""
        self._fail_all(UnavailableError("The server is shutting down.", code="shutting_down"))

    def _forget(self, ids: list[str]) -> None:
        for each in ids:
            self._inboxes.pop(each, None)
        self.abort(ids)

    def _send(self, order: wire.Order) -> None:
        try:
            if self._process is None:
                raise EngineGoneError
            self._process.send(order)
        except EngineGoneError:
            raise UnavailableError("The engine is being restarted.", self._load_s) from None

    # ---- reports ----

    def _take(self, report: wire.Report) -> None:
        if isinstance(report, Deltas):
            now = time.monotonic()
            for delta in report.items:
                self._deliver(delta.id, delta, delta.end is not None, now)
            self._pace.reported(now)
        elif isinstance(report, EngineStats):
            self.stats = report
        elif isinstance(report, Refused):
            self._deliver(report.id, RefusedError(report), True)
        elif isinstance(report, EngineInfo):
            self._become_ready(report)
        elif isinstance(report, LoadFailed):
            self.failure = report
            log.error("the engine cannot be loaded", extra={"reason": report.message})
        elif isinstance(report, Checked):
            self.stats = report.stats
            answer = self._checks.pop(0)  # they come in the order of the questions
            if not answer.done():
                answer.set_result(report)

    def _deliver(
        self, id: str, news: Delta | Exception, ended: bool, at: float | None = None
    ) -> None:
        inbox = self._inboxes.pop(id, None) if ended else self._inboxes.get(id)
        if inbox is not None:
            inbox.put(id, news, at)

    def _become_ready(self, info: EngineInfo) -> None:
        self.info, self.failure = info, None
        self._load_s = info.load_s + 1
        if self.state is not State.STOPPED:
            self.state = State.READY
            about = {"load_s": round(info.load_s, 3), "pid": self.pid}
            log.info("the engine is ready", extra=about)
            self._settled.set()

    def _fail_all(self, error: Exception) -> None:
        inboxes, self._inboxes = self._inboxes, {}
        for id, inbox in inboxes.items():
            inbox.put(id, error)
        checks, self._checks = self._checks, []
        for answer in checks:
            if not answer.done():
                answer.set_exception(error)
