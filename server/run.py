"""Running a server: sockets, signals, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from collections.abc import Iterator

import uvicorn

from .app import build_app
from .client import State
from .listen import Listen
from .listener import Listener
from .protocol.errors import unavailable
from .protocol_h11 import protocol_class, written
from .service import Service
from .signals import ending, noted

_TICK_S = 0.05
_LAST_S = 1.0  # how long the engine has to say what there is of the requests that it lets go of
log = logging.getLogger("saccade.server")


class Server(uvicorn.Server):
    """uvicorn's, with our own way to end: it goes on answering while requests finish."""

    def __init__(self, service: Service, listen: Listen) -> None:
        self.service = service
        self._signals = 0
        self._drainer: asyncio.Task[None] | None = None
        limits = service.config.limits
        config = uvicorn.Config(
            build_app(service),
            http=protocol_class(limits.body_s, limits.send_s),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            h11_max_incomplete_event_size=limits.header_bytes,
            timeout_graceful_shutdown=2,
        )
        config.load()
        config.ssl = listen.tls
        super().__init__(config)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """In place of uvicorn's, which would close the sockets at once."""
        loop = asyncio.get_running_loop()
        for name in ending():
            loop.add_signal_handler(name, self.end)
        if noted():
            self.end()
        yield  # and they stay ours: what is left to do must not be cut short

    def end(self) -> None:
        """First: take nothing new, let requests finish. Second: let go of them.

        A third one does not even wait for what the engine has to say of them.
        """
        self._signals += 1
        self.service.draining = True
        if self._signals == 1:
            log.info("shutting down", extra={"in_flight": self.service.in_flight})
            self._drainer = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        await self._idle(self.service.config.drain_s, signals=1)
        if self.service.in_flight:
            log.warning("requests did not finish in time", extra={"left": self.service.in_flight})
            self.service.abort_all()
            await self._idle(_LAST_S, signals=2)
            self.service.client.let_go()  # the engine may hang: nobody waits for its word
        self.should_exit = True

    async def _idle(self, seconds: float, signals: int) -> None:
        """Until no request is in flight, for so long at most, or until more signals have come."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while self.service.in_flight and loop.time() < until and self._signals <= signals:
            await asyncio.sleep(_TICK_S)


async def serve(service: Service, listen: Listen, sock: Listener) -> bool:
    """Serves on `sock` until a signal comes; False when the engine could not be loaded."""
    server = Server(service, listen)
    if listen.tls is None:  # else there is no word without a handshake
        sock.refusal = written(unavailable("There are too many connections.", 1, "overloaded"))
    gc.freeze()  # what is there by now stays: a collection need not look at it, and takes no time
    log.info("listening", extra={"url": listen.url(sock), "models": list(service.names)})
    watcher = asyncio.create_task(_give_up(server))
    try:
        await server.serve([sock])
    finally:
        watcher.cancel()
    return service.client.state is not State.FAILED


async def _give_up(server: Server) -> None:
    """Ends the server when the engine can never be loaded."""
    if await server.service.client.settled() is State.FAILED:
        server.should_exit = True
