"""More connections than descriptors: the others are served, and the engine can be restarted."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import json
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
import time

import pytest

from saccade.server.listener import Listener
from saccade.server.logs import JsonLines, LoopErrors

from . import running
from .conftest import Serve
from .running import COMMAND


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers of this test may have 100 descriptors."""
    argv = ["sh", "-c", 'ulimit -n 100; exec "$@"', "sh", *COMMAND]
    monkeypatch.setattr(running, "COMMAND", argv)


@pytest.mark.usefixtures("few")
def test_there_are_more_connections_than_descriptors(serve: Serve) -> None:
    server = serve()
    assert server.http.get("/version").status_code == 200  # a connection from before
    host, port = server.url.removeprefix("http://").split(":")
    refused = 0
    with contextlib.ExitStack() as stack:
        for _ in range(110):
            sock = stack.enter_context(socket.create_connection((host, int(port)), timeout=20))
            sock.sendall(b"GET /health HTT")
            refused += is_refused(sock)
        assert refused > 40
        began = time.monotonic()
        for _ in range(20):
            assert server.http.get("/version").status_code == 200
        assert time.monotonic() - began < 5
        os.kill(server.engine_pid, signal.SIGKILL)
        server.wait_for("the engine is ready", 2)  # with all these connections open
    until = time.monotonic() + 10
    while time.monotonic() < until:
        with socket.create_connection((host, int(port)), timeout=20) as sock:
            sock.sendall(b"GET /live HTTP/1.0\r\n\r\n")
            if sock.recv(4096).startswith(b"HTTP/1.1 200 OK"):
                break
    else:
        raise AssertionError("no place was given back")
    server.wait_for("no descriptors for more connections")
    text = server.log.read_text()
    assert "Traceback" not in text and "out of system resource" not in text
    assert len(server.events("no descriptors for more connections")) < 40


def is_refused(sock: socket.socket) -> bool:
    """Whether it was told so; a connection that is taken says nothing yet."""
    sock.settimeout(0.05)
    try:
        reply = b"".join(iter(lambda: sock.recv(4096), b""))
    except TimeoutError:
        return False
    head, _, body = reply.partition(b"\r\n\r\n")
    assert (
        head.startswith(b"HTTP/1.1 503 Service Unavailable") and b"retry-after: 1" in head.lower()
    )
    assert json.loads(body)["error"]["code"] == "overloaded"
    return True


def test_a_system_without_descriptors_is_not_asked_again_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """asyncio's loop over the backlog ends at the first failure, and is told of one."""
    told: list[str] = []
    tried: list[None] = []

    def failing(self: socket.socket) -> None:
        tried.append(None)
        raise OSError(errno.ENFILE, "no files")

    async def live() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, c: told.append(c["message"]))
        sock = Listener(socket.AF_INET, socket.SOCK_STREAM)
        sock.bind(("127.0.0.1", 0))
        monkeypatch.setattr(socket.socket, "accept", failing)
        async with await asyncio.start_server(lambda r, w: None, sock=sock, backlog=500):
            with socket.create_connection(sock.getsockname()):
                await asyncio.sleep(0.3)

    asyncio.run(live())
    assert len(tried) == len(told) == 1


def test_as_many_descriptors_as_there_may_be() -> None:
    code = (
        "import resource; from saccade.server.listener import *\n"
        "raise_limit(); print(resource.getrlimit(resource.RLIMIT_NOFILE), most_for_connections())"
    )
    for soft, hard, wanted in ((64, 256, 256), (256, 256, 256), (48, 48, 48)):
        argv = [
            "sh",
            "-c",
            f"ulimit -Sn {soft} && ulimit -Hn {hard} && exec {sys.executable} -c '{code}'",
        ]
        if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < hard:
            pytest.skip("this process may have too few itself")
        found = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()
        most = 24 if wanted == 48 else wanted - 40
        assert found == [f"({wanted},", f"{hard})", f"{most}"]


def test_what_the_loop_is_told_is_logged_once_a_second() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    logger = logging.getLogger("saccade.loop")
    logger.addHandler(handler)
    loop = asyncio.new_event_loop()
    try:
        loop.set_exception_handler(handle := LoopErrors())
        for number in range(1000):
            loop.call_exception_handler({"message": "bad", "exception": ValueError(number)})
        handle._next = 0
        loop.call_exception_handler({"message": "again"})
    finally:
        loop.close()
        logger.removeHandler(handler)
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert first["event"] == "bad" and "ValueError: 0" in first["traceback"]
    assert second["event"] == "again" and second["left_out"] == 999
