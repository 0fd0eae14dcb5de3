"""A device that does not exist: its tensors are host tensors in disguise, and any product of them
with an undisguised one is an error, as it would be between a GPU and the host.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")  # the one device besides the processor that every build of torch has
# What torch itself allows between devices: copies, and index tensors on the host.
BETWEEN = ("copy_", "_to_copy", "index.Tensor", "index_put")


class Phantom(torch.Tensor):
    """A tensor of the device; `held` has its numbers."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, real: torch.Tensor) -> Phantom:
        layout = {"strides": real.stride(), "storage_offset": real.storage_offset()}
        found = torch.Tensor._make_wrapper_subclass(
            cls, real.size(), dtype=real.dtype, device=DEVICE, **layout
        )
        found.held = real
        return found

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(op, args, dict(kwargs or {}))

    def tolist(self) -> Any:
        return self.held.tolist()

    def cpu(self) -> torch.Tensor:
        return self.held.clone()


class PhantomMode(TorchDispatchMode):
    """Inside, tensors that are made on DEVICE are phantoms."""

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(op, args, dict(kwargs or {}))


def computed(op: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The op over the real tensors; its results lie where the device would have them."""
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
    phantoms = [each for each in tensors if isinstance(each, Phantom)]
    host = [each for each in tensors if not isinstance(each, Phantom) and each.dim()]
    name = str(op)
    if phantoms and host:
        indexed = "index" in name and not isinstance(args[0], Phantom)
        if indexed or not any(each in name for each in BETWEEN):
            shapes = [tuple(each.shape) for each in host]
            raise RuntimeError(f"{name}: tensors of the device and of the host, {shapes}")
    there = bool(phantoms)
    if kwargs.get("device") is not None:
        there = torch.device(kwargs["device"]).type == DEVICE.type
        kwargs["device"] = torch.device("cpu")
    real = tree_map(lambda each: each.held if isinstance(each, Phantom) else each, (args, kwargs))
    out = op(*real[0], **real[1])
    if "copy_" in name:
        return args[0]
    known = {id(each.held): each for each in phantoms}

    def placed(each: Any) -> Any:
        if not there or not isinstance(each, torch.Tensor) or isinstance(each, Phantom):
            return each
        return known.get(id(each)) if id(each) in known else Phantom(each)

    return tree_map(placed, out)


def tensor_of(make: Any) -> Any:
    """torch.tensor for numbers that are wanted on the device; otherwise `make`, torch's own."""

    def tensor(data: Any, dtype: Any = None, device: Any = None) -> torch.Tensor:
        where = torch.empty(0).device if device is None else torch.device(device)
        made: torch.Tensor = make(data, dtype=dtype, device="cpu")
        return made.to(where) if where.type == DEVICE.type else made

    return tensor
