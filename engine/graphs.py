"""Graphs of decode steps: a step whose tensors have the shapes of one seen before is not computed
kernel by kernel but replayed in one launch.

What a step depends on lies in one buffer (see `Staging`) and in the pages; everything else (shapes,
options, methods) is in its signature. So a graph holds for every step of its signature, once the
buffer is filled with that step. Page tables are as wide as a few sizes allow, so that signatures
come again; see `width`. On a GPU they are CUDA graphs, on the processor tapes; see `tapes.py`.
"""

from __future__ import annotations

import os
import sys
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from typing import Any, Protocol

import torch

from ..kernels import native
from .devices import Place, Staging
from .forward import Forward, Written
from .tapes import Pool, Tape, look_at_keys

SETTING, TAPES = "SACCADE_CUDA_GRAPHS", "SACCADE_CPU_TAPES"
MOST_GRAPHS = 48  # kept; the one that was replayed longest ago goes first
MOST_BUFFERS = 32 << 20  # bytes of their steps, which hold page tables; but for that of the last
_ROW = 8192  # bytes of a sequence's row in a step, beside page tables: at most
_REMEMBERED = 512  # signatures computed, or refused
# Known on the host alone, and of no matter where every sequence has one row.
_IGNORED = frozenset({"spans"})


@dataclass(frozen=True)
class Recording:
    """What a call does: where its result lies, and what does it again.

    replay: None where it cannot be done again, for the reason in `refusal`.
    """

    result: torch.Tensor
    replay: Callable[[], None] | None
    refusal: str | None = None


class Recorder(Protocol):
    """Records what a call does on the device."""

    # Whether recording a call also does it (on the processor). Otherwise nothing has been done, and
    # what cannot be recorded raises.
    computes: bool

    def capture(self, call: Callable[[], torch.Tensor]) -> Recording:
        """Raises whatever the call may raise."""
        ...


class CudaRecorder:
    """CUDA graphs, which share one pool of memory."""

    computes = False

    def __init__(self) -> None:
        self._pool: Any = None

    def capture(self, call: Callable[[], torch.Tensor]) -> Recording:
        """See `Recorder`."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            result = call()
        self._pool = self._pool or graph.pool()
        return Recording(result, graph.replay)


class TapeRecorder:
    """Tapes, which share one pool of memory."""

    computes = True

    def __init__(self) -> None:
        self._pool = Pool()

    def capture(self, call: Callable[[], torch.Tensor]) -> Recording:
        """See `Recorder`."""
        tape = Tape(self._pool)
        result = tape.record(call)
        return Recording(result, None if tape.refusal else tape.play, tape.refusal)


def recorder(where: Place) -> Recorder | None:
    """What records there. None: nothing does, or SACCADE_CUDA_GRAPHS=0 or, on the processor,
    SACCADE_CPU_TAPES=0 forbids it.
    """
    if not where.gpu:
        allowed = os.environ.get(TAPES) != "0" and native.kernels() is not None
        return TapeRecorder() if allowed else None
    if where.device.type != "cuda" or os.environ.get(SETTING) == "0":
        return None
    return CudaRecorder()


def width(pages: int) -> int:
    """How wide page tables of so many pages are made: at most a quarter wider than they must be.

    Eight, and four sizes between a power of two and the next.
    """
    step = max(8, (1 << max(pages - 1, 1).bit_length()) // 8)
    return -(-pages // step) * step


def buffer_bytes(seqs: int, tables: Sequence[int]) -> int:
    """At most what the buffers of graphs take, the next one while the others are still there, and
    what steps are staged in: of so many sequences, each with page tables of at most so many pages.
    """
    step = seqs * (4 * sum(map(width, tables)) + _ROW)
    return max(MOST_BUFFERS, step) + 3 * step


@dataclass
class _Graph:
    buffer: torch.Tensor  # the step's tensors
    hidden: torch.Tensor  # the result
    written: Written  # what else
    replay: Callable[[], None]


class DecodeGraphs:
    """The graphs of one model over one cache."""

    def __init__(self, staging: Staging, recorder: Recorder) -> None:
        self._staging = staging
        self._recorder = recorder
        self._graphs: OrderedDict[Hashable, _Graph] = OrderedDict()
        self._seen: OrderedDict[Hashable, str | None] = OrderedDict()  # and why not captured
        self._computed: set[Hashable] = set()  # outlines of steps that the host has no part in
        self.replays = 0

    @property
    def refusals(self) -> list[str]:
        """Why steps were not captured, each reason once."""
        return sorted({reason for reason in self._seen.values() if reason})

    def run(self, forward: Forward, compute: Callable[[Forward], torch.Tensor]) -> torch.Tensor:
        """The step's hidden states: replayed, captured and replayed, or computed."""
        key = (forward.outline(), signature(forward.sendable()))
        graph = self._graphs.get(key)
        if graph is not None:
            self._graphs.move_to_end(key)
            self._staging.refill(forward.sendable(), graph.buffer)
            forward.note_replay(graph.written)
        elif self._is_due(key):
            recording = self._record(key, forward, compute)
            if recording is not None and self._recorder.computes:
                return recording.result
            graph = self._graphs.get(key)
        if graph is not None:
            graph.replay()
            self.replays += 1
            return graph.hidden
        if not self._recorder.computes:
            forward.send(self._staging)
        hidden = compute(forward)  # also compiles what is compiled at first use
        self._note(key, self._seen.get(key) or forward.bound_to_host)
        if forward.bound_to_host is None:
            self._computed.add(key[0])
        return hidden

    def _is_due(self, key: tuple[Hashable, Hashable]) -> bool:
        """Whether to record a step: when it comes again, and on the processor at once if the same
        methods have been computed before, for then a recording costs but half a step.
        """
        known = key in self._seen or (self._recorder.computes and key[0] in self._computed)
        return known and self._seen.get(key) is None

    def _record(
        self, key: Hashable, forward: Forward, compute: Callable[[Forward], torch.Tensor]
    ) -> Recording | None:
        """Makes a graph of this step, which has not run yet, if it can; None: nothing was done."""
        if self._recorder.computes:
            look_at_keys(forward.sendable())
        buffer = forward.send(self._staging)
        try:
            recording = self._recorder.capture(lambda: compute(forward))
        except Exception as error:  # e.g. a method that looks at the device
            if self._recorder.computes:
                raise
            reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            if reason not in self.refusals:
                print(f"saccade: decode steps run without CUDA graphs: {reason}", file=sys.stderr)
            self._note(key, reason)
            forward.forget()
            return None
        if recording.replay is None or forward.bound_to_host is not None:
            self._note(key, recording.refusal or forward.bound_to_host)
            return recording
        self._forget_for(buffer.nbytes)
        # Not the step itself, which holds its requests and all their tokens.
        self._graphs[key] = _Graph(buffer, recording.result, forward.written, recording.replay)
        return recording

    def _forget_for(self, nbytes: int) -> None:
        """Makes room for one more graph, whose buffer has so many bytes."""
        held = sum(graph.buffer.nbytes for graph in self._graphs.values())
        while self._graphs and (len(self._graphs) >= MOST_GRAPHS or held + nbytes > MOST_BUFFERS):
            held -= self._graphs.popitem(last=False)[1].buffer.nbytes

    def _note(self, key: Hashable, reason: str | None) -> None:
        self._seen[key] = reason
        self._seen.move_to_end(key)
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        if len(self._computed) > _REMEMBERED:
            self._computed.clear()


def signature(value: Any) -> Hashable:
    """Everything about `value` but what its tensors hold: types, shapes, numbers, and which parts
    of it are one and the same tensor.
    """
    places: dict[int, int] = {}
    return _signature(value, places)


def _signature(value: Any, places: dict[int, int]) -> Hashable:
    if isinstance(value, torch.Tensor):
        place = places.setdefault(id(value), len(places))
        return place, value.dtype, tuple(value.shape)
    if isinstance(value, dict):
        return tuple((key, _signature(each, places)) for key, each in value.items())
    if isinstance(value, list | tuple):
        return type(value), tuple(_signature(each, places) for each in value)
    if isinstance(value, slice):
        return value.start, value.stop, value.step
    if value is None or isinstance(value, int | float | str | bool | Enum | torch.dtype):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        names = [each.name for each in fields(value) if each.name not in _IGNORED]
        parts = tuple(_signature(getattr(value, name), places) for name in names)
        return type(value), parts
    return type(value), id(value)
