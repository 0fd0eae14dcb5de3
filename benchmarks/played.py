"""Decode as the engine computes it: recorded once, then played without Python (engine/tapes.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..engine.graphs import TapeRecorder
from ..kernels import native
from .timing import Run


class Played:
    """A run that is recorded when it is made; what cannot be recorded is called every time."""

    def __init__(self, run: Run, prepare: Callable[[], Any] = lambda: None) -> None:
        """prepare: makes what the run reads, before it is recorded and whenever it is called."""
        self._run, self._prepare = run, prepare
        prepare()
        run()  # keys are looked at once
        self._recording = None
        if native.kernels() is not None:
            prepare()
            self._recording = TapeRecorder().capture(run)

    @property
    def is_recorded(self) -> bool:
        """Whether a call plays what was recorded."""
        return self._recording is not None and self._recording.replay is not None

    def __call__(self) -> Any:
        """The result, always in the same memory where it is played."""
        if self._recording is None or self._recording.replay is None:
            self._prepare()
            return self._run()
        self._recording.replay()
        return self._recording.result
