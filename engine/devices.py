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

import numpy as np
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
        found = _changed(value, copy.copy, move, known, own)
    elif own is not None and type(value).__module__.startswith(own):
        known[id(value)] = value  # before its parts, one of which may lead back to it
        _changed(value, lambda same: same, move, known, own)
    known[id(value)] = found
    return found


def _as_tuple(value: tuple[Any, ...], items: list[Any]) -> tuple[Any, ...]:
    return type(value)(*items) if hasattr(value, "_fields") else tuple(items)


def _changed(
    value: Any, target: Callable[[Any], Any], move: Move, known: dict[int, Any], own: str | None
) -> Any:
    """`target(value)`, with the attributes of `value` moved; or `value`, where none was."""
    attributes = vars(value) if hasattr(value, "__dict__") else {}
    parts = {name: moved(each, move, known, own) for name, each in attributes.items()}
    changed = {name: part for name, part in parts.items() if part is not attributes[name]}
    if not changed:
        return value
    into = target(value)
    for name, part in changed.items():
        object.__setattr__(into, name, part)
    return into


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

    def send(self, value: Any) -> tuple[Any, dict[int, Any], torch.Tensor]:
        """`value` with its tensors on the device, by the id of each part what became of it, and
        the buffer that holds them all.
        """
        places, size = _places(value)
        sent = self._staged(places, size).to(self._where.device, non_blocking=True, copy=True)
        begins = {id(tensor): begin for tensor, begin in places}
        known: dict[int, Any] = {id(self._host_angles): self._angles}

        def view_of(tensor: torch.Tensor) -> torch.Tensor:
            begin = begins[id(tensor)]
            return sent[begin : begin + tensor.nbytes].view(tensor.dtype).view(tensor.shape)

        return moved(value, view_of, known), known, sent

    def refill(self, value: Any, buffer: torch.Tensor) -> None:
        """Fills the buffer of an earlier value, of the same shape, with this one."""
        places, size = _places(value)
        if buffer.device.type == "cpu":
            _lay_out(places, buffer)
        else:
            buffer.copy_(self._staged(places, size), non_blocking=True)

    def _staged(self, places: list[tuple[torch.Tensor, int]], size: int) -> torch.Tensor:
        """uint8 [size] on the host, where the device can read it."""
        if self._pinned.numel() < size:
            pin = self._where.device.type == "cuda"
            options: Any = {"dtype": torch.uint8, "device": "cpu", "pin_memory": pin}
            self._pinned = torch.empty(2 * size, **options)
        _lay_out(places, self._pinned)
        return self._pinned[:size]


def _places(value: Any) -> tuple[list[tuple[torch.Tensor, int]], int]:
    """Where each tensor of `value` begins in the buffer, and how many bytes that takes."""
    places: list[tuple[torch.Tensor, int]] = []
    size = 0

    def place_of(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal size
        places.append((tensor, size))
        size += -(-tensor.nbytes // _ALIGN) * _ALIGN
        return tensor

    moved(value, place_of, {})
    return places, size


def _lay_out(places: list[tuple[torch.Tensor, int]], buffer: torch.Tensor) -> None:
    """Copies each tensor to its place in a buffer of bytes."""
    memory = buffer.numpy()
    for tensor, begin in places:
        # NumPy copies few bytes faster, but knows no bfloat16.
        words = tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
        flat = np.ascontiguousarray(words.numpy()).reshape(-1).view(np.uint8)
        memory[begin : begin + flat.size] = flat
