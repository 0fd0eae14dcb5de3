"""Signals at every moment of a server's life: it ends, in order, and leaves nothing behind."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from saccade.server import signals

from .conftest import Serve

MAIN = "from saccade.server.cli import main; sys.exit(main())"
# As soon as there is an engine process, before anything else is done about it.
AT_THE_FORK = f"""
import os, signal, subprocess, sys
inner = subprocess._fork_exec
def fork(*args):
    pid = inner(*args)
    os.kill(os.getpid(), signal.SIGNAL)
    return pid
subprocess._fork_exec = fork
{MAIN}
"""
# Where Python prints an exception and forgets it.
IN_A_DESTRUCTOR = f"""
import os, signal, sys
from saccade.server.client import EngineClient
class Last:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000): pass
inner = EngineClient.start
def start(self):
    inner(self)
    Last()
EngineClient.start = start
{MAIN}
"""
AMONG_THE_IMPORTS = f"""
import os, signal, sys
class Finder:
    def find_spec(self, name, *_):
        if name == "saccade.server.commands.look":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
signal.signal(signal.SIGINT, signal.default_int_handler)
{MAIN}
"""


def serve_so(code: str, folder: Path) -> tuple[int, str]:
    """Runs `code` as `saccade serve` with `folder` for its private things: (status, stderr)."""
    command = [sys.executable, "-c", code, "serve", "demo", "--port", "0"]
    environment = os.environ | {"TMPDIR": str(folder)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            _, stderr = process.communicate(timeout=60)
        finally:
            process.kill()
    return process.returncode, stderr


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 0), ("SIGHUP", 0), ("SIGINT", 130)])
def test_while_the_engine_is_forked(name: str, status: int, tmp_path: Path) -> None:
    """Neither process has a word of complaint, and the folder is gone."""
    found, stderr = serve_so(AT_THE_FORK.replace("signal.SIGNAL", f"signal.{name}"), tmp_path)
    assert (found, stderr) == (status, "saccade: interrupted\n" if status else "")
    assert not list(tmp_path.glob("saccade-*"))


def test_where_the_exception_is_lost(tmp_path: Path) -> None:
    status, stderr = serve_so(IN_A_DESTRUCTOR, tmp_path)
    assert "Exception ignored in" in stderr and "shutting down" in stderr
    assert status == 0


def test_an_interrupt_among_the_imports_is_one_line(tmp_path: Path) -> None:
    assert serve_so(AMONG_THE_IMPORTS, tmp_path) == (130, "saccade: interrupted\n")


def test_the_compiler_does_not_forget_it() -> None:
    """Folding constants clears whatever was raised meanwhile, but not a KeyboardInterrupt."""
    source = "\n".join(f"a{n} = {n} * 2**63 - 2**62" for n in range(4000))
    before = signal.signal(signal.SIGALRM, signals._raise)
    began = time.perf_counter()
    compile(source, "x", "exec")
    whole = time.perf_counter() - began
    lost = 0
    try:
        for _ in range(20):
            signals._noted.clear()
            try:
                signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0001, whole))
                compile(source, "x", "exec")
                until = time.perf_counter() + whole + 1
                while not signals.noted() and time.perf_counter() < until:
                    pass
                lost += 1
            except signals.Terminated:
                continue
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signals._noted.clear()
    assert lost == 0


def test_an_engine_without_a_parent_leaves_quietly(tmp_path: Path) -> None:
    for sent in (b"", b"\x09", b"\x09\0\0\0ab"):
        command = [sys.executable, "-m", "saccade.server.worker", str(tmp_path)]
        done = subprocess.run(command, input=sent, capture_output=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, b"")


def test_a_terminal_that_closes_ends_the_server(serve: Serve, tmp_path: Path) -> None:
    server = serve()
    (folder,) = Path(f"/proc/{server.engine_pid}/cmdline").read_text().split("\0")[-2:-1]
    assert Path(folder).is_dir()
    server.signal(signal.SIGHUP)
    assert server.wait() == 0
    server.wait_for("shutting down")
    assert not Path(folder).exists()


def test_nohup_is_heeded() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    term = signal.getsignal(signal.SIGTERM)
    try:
        signals.raise_early()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signals.ending() == [signal.SIGINT, signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, term)
        signal.signal(signal.SIGHUP, before)
