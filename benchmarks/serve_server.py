"""A `saccade serve` of one's own, for as long as it is measured."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Sequence

_START_S = 300.0
_STOP_S = 40.0


class Server:
    """Starts it on a free port of this machine and waits until it is ready; ends it afterwards.

    started_s, ready_s: from the start until /health was answered at all, and with 200.
    """

    def __init__(self, model: str, arguments: Sequence[str] = ()) -> None:
        """RuntimeError, with the end of its log, when it cannot start."""
        began = time.perf_counter()
        command = [sys.executable, "-m", "saccade.server.cli", "serve", model, "--port", "0"]
        self._process = subprocess.Popen(
            [*command, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._log: deque[str] = deque(maxlen=50)
        self._listening = threading.Event()
        self.url = ""
        threading.Thread(target=self._read, daemon=True).start()
        try:
            self._wait(lambda: self._listening.is_set())
            self._wait(lambda: self.health() is not None)
            self.started_s = time.perf_counter() - began
            self._wait(lambda: self.health() == 200)
            self.ready_s = time.perf_counter() - began
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def health(self) -> int | None:
        """The status of /health; None when nothing answers."""
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=10) as reply:
                return int(reply.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return None

    def stop(self) -> None:
        """SIGTERM; SIGKILL when that does not help."""
        self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _wait(self, done: object) -> None:
        until = time.perf_counter() + _START_S
        while not done():  # type: ignore[operator]
            if self._process.poll() is not None or time.perf_counter() > until:
                raise RuntimeError("saccade serve did not start:\n" + "".join(self._log))
            time.sleep(0.01)

    def _read(self) -> None:
        for line in self._process.stderr or ():
            self._log.append(line)
            if '"event":"listening"' in line:
                self.url = json.loads(line)["url"]
                self._listening.set()
