"""Where an engine computes: the processor, or a GPU; and how tensors get there.

On a GPU the plans are still made on the host, where everything they need is known, and travel with
the batch in one copy from pinned memory.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, is_dataclass
from typing import Any

import torch

from ..kernels import gpu
from ..kernels.linear import PackedHeads, PackedWeight
from ..kernels.store import PageLayout, RowLayout
from .memory import available_memory

Move = Callable[[torch.Tensor], torch.Tensor]
_ALIGN = 16  # bytes: what a vectorised load of a kernel wants


@dataclass(frozen=True)
class Place:
    """The device of pages, weights and steps. gpu: the GPU path, also where it is interpreted."""

    device: torch.device
    gpu: bool

    def layout(self, page_size: int) -> PageLayout:
        """How pages lie there."""
        return RowLayout(page_size) if self.gpu else PageLayout(page_size)

    def scope(self) -> AbstractContextManager[Any]:
        """Inside, tensors are made there, whoever makes them: methods do not know of devices."""
        return nullcontext() if self.device.type == "cpu" else self.device

    def available_memory(self) -> int:
        """Bytes that weights, pages and scratch may take."""
        if self.device.type == "cpu":
            return available_memory()
        free, _ = torch.cuda.mem_get_info(self.device)
        return int(free)


def place(name: str) -> Place:
    """The place of EngineConfig.device. Raises ValueError for "cuda" where there is no GPU."""
    if name == "cuda" or (name == "auto" and torch.cuda.is_available()):
        return Place(gpu.device(), gpu=True)
    return Place(torch.device("cpu"), gpu=False)


def moved(value: Any, move: Move, known: dict[int, Any], own: str | None = None) -> Any:
    """`value` with its tensors moved: in containers and dataclasses, which are copied, and in
    objects of modules whose names begin with `own`, which are changed.

    known: by id, what was moved already; what two hold together they hold together afterwards.
    Whatever has no tensor inside stays itself.
    """
    if id(value) in known:
        return known[id(value)]
    found = value
    if isinstance(value, torch.Tensor):
        found = move(value)
    elif isinstance(value, dict):
        parts = {key: moved(each, move, known, own) for key, each in value.items()}
        if any(parts[key] is not value[key] for key in parts):
            found = OrderedDict(parts) if isinstance(value, OrderedDict) else parts
    elif isinstance(value, list | tuple):
        items = [moved(each, move, known, own) for each in value]
        if any(a is not b for a, b in zip(items, value, strict=True)):
            found = items if isinstance(value, list) else _as_tuple(value, items)
    elif is_dataclass(value) and not isinstance(value, type):
        found = _changed(value, copy.copy(value), move, known, own)
    elif own is not None and type(value).__module__.startswith(own):
        known[id(value)] = value  # before its parts, one of which may lead back to it
        _changed(value, value, move, known, own)
    known[id(value)] = found
    return found


def _as_tuple(value: tuple[Any, ...], items: list[Any]) -> tuple[Any, ...]:
    return type(value)(*items) if hasattr(value, "_fields") else tuple(items)


def _changed(value: Any, into: Any, move: Move, known: dict[int, Any], own: str | None) -> Any:
    """`into`, with the attributes of `value` moved; or `value`, where none was."""
    changed = False
    for name, each in vars(value).items() if hasattr(value, "__dict__") else ():
        part = moved(each, move, known, own)
        if part is not each:
            object.__setattr__(into, name, part)
            changed = True
    return into if changed else value


def move_model(model: Any, where: Place) -> None:
    """Moves a model's weights, packed for the processor's vector lanes, and leaves them as rows.

    Its rotary embedding stays: plans are made on the host. See `Staging`.
    """
    known: dict[int, Any] = {id(model.rope): model.rope}

    def move(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(where.device, copy=True)

    for owner in _packed(model, set()):
        known[id(owner)] = _as_rows(owner, move)
    moved(model, move, known, __name__.split(".")[0])


def _as_rows(weight: PackedWeight | PackedHeads, move: Move) -> PackedWeight | PackedHeads:
    if isinstance(weight, PackedWeight):
        return weight.as_rows(move)
    return weight.as_rows(move)


def _packed(value: Any, seen: set[int]) -> list[Any]:
    """Every packed weight inside a model."""
    if id(value) in seen or isinstance(value, torch.Tensor | str | int | float):
        return []
    seen.add(id(value))
    if isinstance(value, PackedWeight | PackedHeads):
        return [value]
    parts: list[Any] = []
    if isinstance(value, dict):
        parts = list(value.values())
    elif isinstance(value, list | tuple):
        parts = list(value)
    elif type(value).__module__.startswith(__name__.split(".")[0]) and hasattr(value, "__dict__"):
        parts = list(vars(value).values())
    return [found for part in parts for found in _packed(part, seen)]


class Staging:
    """Copies host tensors to the device, all of a step in one copy from pinned memory.

    A step's tokens are read on the host before the next step begins, so that its copy is over by
    then and the pinned memory is free again.
    """

    def __init__(self, where: Place, host_angles: Any) -> None:
        """host_angles: the model's rotary embedding, a copy of which serves on the device."""
        self._where = where
        self._pinned = torch.empty(0, dtype=torch.uint8)
        self._host_angles = host_angles
        self._angles = copy.copy(host_angles)
        with where.scope():
            for name, each in vars(host_angles).items():
                if isinstance(each, torch.Tensor):
                    setattr(self._angles, name, each.to(where.device))
                elif isinstance(each, OrderedDict):  # its rows by blocks: it fills its own
                    setattr(self._angles, name, OrderedDict())

    def send(
        self, value: Any, buffer: torch.Tensor | None = None
    ) -> tuple[Any, dict[int, Any], torch.Tensor]:
        """`value` with its tensors on the device, by the id of each part what became of it, and
        the buffer that holds them all.

        buffer: an earlier one, of a value of the same shape, to be filled again.
        """
        places: dict[int, tuple[torch.Tensor, int]] = {}
        size = 0

        def place_of(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal size
            places[id(tensor)] = tensor, size
            size += -(-tensor.nbytes // _ALIGN) * _ALIGN
            return tensor

        moved(value, place_of, {})
        staged = self._staged(size, [*places.values()], buffer)
        known: dict[int, Any] = {id(self._host_angles): self._angles}

        def view_of(tensor: torch.Tensor) -> torch.Tensor:
            begin = places[id(tensor)][1]
            piece = staged[begin : begin + tensor.nbytes]
            return piece.view(tensor.dtype).view(tensor.shape)

        return moved(value, view_of, known), known, staged

    def _staged(
        self, size: int, tensors: list[tuple[torch.Tensor, int]], buffer: torch.Tensor | None
    ) -> torch.Tensor:
        """uint8 [size] on the device."""
        pin = self._where.device.type == "cuda"
        if self._pinned.numel() < size:
            self._pinned = torch.empty(2 * size, dtype=torch.uint8, pin_memory=pin)
        for tensor, begin in tensors:
            if tensor.numel():
                # What holds one element is contiguous whatever its stride.
                dense = tensor.contiguous().as_strided((tensor.numel(),), (1,))
                flat = dense.view(torch.uint8)
                self._pinned[begin : begin + tensor.nbytes].copy_(flat)
        if buffer is not None:
            return buffer.copy_(self._pinned[:size], non_blocking=True)
        return self._pinned[:size].to(self._where.device, non_blocking=True, copy=True)
