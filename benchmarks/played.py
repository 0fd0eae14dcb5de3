"""Decode as the engine computes it: the calls of a step are recorded once, and then played without
Python (engine/tapes.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..engine.graphs import TapeRecorder
from ..kernels import native
from .timing import Run


class Played:
    """Calls in a row, as the layers of a step make them, each on data of its own that no cache
    holds. What cannot be recorded is called from Python.
    """

    def __init__(self, runs: Sequence[Run], prepare: Callable[[], Any] = lambda: None) -> None:
        """prepare: makes what the runs read, before they are recorded and whenever they are called
        from Python.
        """
        self.calls = len(runs)
        self._runs, self._prepare = runs, prepare
        self._recording = None
        with torch.inference_mode():
            self._call()  # keys are looked at once, and remember what was found
            if native.kernels() is not None:
                prepare()
                self._recording = TapeRecorder().capture(self._in_turn)

    def __call__(self) -> Any:
        """The last result; where it is played, always in the same memory."""
        if self._recording is None or self._recording.replay is None:
            return self._call()
        with torch.inference_mode():
            self._recording.replay()
        return self._recording.result

    def _call(self) -> Any:
        self._prepare()
        return self._in_turn()

    def _in_turn(self) -> Any:
        for run in self._runs:
            found = run()
        return found
