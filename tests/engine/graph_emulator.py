"""Graphs without a GPU: what a call does is recorded, operator by operator and launch by launch,
and done again on the very same tensors. So a replay sees what a CUDA graph would see: no Python,
no new addresses, no number that was known on the host alone. Whatever would make the host wait
for a GPU is refused, as it is while CUDA captures.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from saccade.engine.graphs import Recording
from saccade.engine.tapes import looks, storage, tensors


class Waits(RuntimeError):
    """Something would wait for the device."""


class Tape(TorchDispatchMode):
    """Everything that was done inside."""

    def __init__(self, captures: bool = False) -> None:
        """captures: numbers of the host may not be copied to the device, as while CUDA captures."""
        super().__init__()
        self._captures = captures
        self._before: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # memory, and its copy
        self.done: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], Any]] = []
        self._launching = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._launching:
            return func(*args, **kwargs)
        if looks(func, args, kwargs):
            raise Waits(f"{func._schema.name.split('::')[1]} waits for the device")
        if self._captures and func._schema.name == "aten::lift_fresh" and args[0].ndim:
            raise Waits("numbers of the host are made a tensor, which is copied to the device")
        if func._schema.is_mutable:
            self._remember((args, kwargs))
        out = func(*args, **kwargs)
        self.done.append((func, args, kwargs, out))
        return out

    def launch(self, run: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        """A kernel in Triton; its interpreter's own operators are not the step's."""
        self._launching = True
        self._remember((args, kwargs))
        try:
            run(*args, **kwargs)
        finally:
            self._launching = False
        self.done.append((run, args, kwargs, None))

    def replay(self) -> None:
        """Everything again, into the tensors that it made."""
        for run, args, kwargs, out in self.done:
            again = run(*args, **kwargs)
            for old, new in zip(tensors(out), tensors(again), strict=True):
                if storage(old) != storage(new):
                    old.copy_(new)

    def _remember(self, value: Any) -> None:
        """What lies in memory that may be about to change, the first time."""
        for each in tensors(value):
            if each.numel() and storage(each) not in self._before:
                size = each.untyped_storage().nbytes()
                memory = torch.empty(0, dtype=torch.uint8).set_(each.untyped_storage(), 0, (size,))
                self._before[storage(each)] = memory, memory.clone()

    def undo(self) -> None:
        """A capture does nothing: memory holds what it held."""
        for memory, before in self._before.values():
            memory.copy_(before)
        self._before.clear()

    def poison(self) -> None:
        """A capture computes nothing: what it made may hold anything."""
        for _, args, kwargs, out in self.done:
            given = {storage(each) for each in tensors((args, kwargs))}
            for each in tensors(out):
                if storage(each) not in given and each.is_floating_point():
                    each.fill_(torch.nan)


class Emulator:
    """Stands in for `engine.graphs.CudaRecorder`."""

    computes = False

    def capture(self, call: Callable[[], torch.Tensor]) -> Recording:
        """See `engine.graphs.Recorder`."""
        from triton.runtime.interpreter import GridExecutor

        tape, run = Tape(captures=True), GridExecutor.__call__

        def waits(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            raise Waits("a tensor is read on the host")

        with (
            patch.object(GridExecutor, "__call__", lambda *a, **k: tape.launch(run, *a, **k)),
            patch.object(torch.Tensor, "tolist", waits),
            tape,
        ):
            result = call()
        tape.undo()
        tape.poison()
        return Recording(result, tape.replay)
