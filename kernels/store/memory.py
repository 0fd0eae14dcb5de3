"""Host memory: zeroed that costs nothing before it is used, and large results."""

from __future__ import annotations

import math
import mmap
import weakref
from collections.abc import Sequence
from contextlib import suppress

import torch

from .. import native

# Bytes from which memory is asked for in huge pages (of 2 MiB): of smaller tensors too much would
# be committed in vain.
HUGE_FROM = 8 << 20
# Bytes from which the C library asks the system for memory anew at every call, and gives it back:
# every small page of it is then a fault (glibc's M_MMAP_THRESHOLD grows no further).
ANEW_FROM = 32 << 20
# What large results have left, for the next: bytes of it at most.
MOST_SPARE = 512 << 20
_spares: list[mmap.mmap] = []


def zeroed(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """A tensor of zeros; in memory of its own on the host, committed when it is first written.

    torch.zeros writes every byte: for gigabytes of pages that alone takes seconds. Here they come
    from an anonymous mapping, page-aligned, and stay alive as long as the tensor. Where the system
    has huge pages, large tensors lie in them: reading them as a stream is a fifth faster. (What is
    recorded must be zeroed again, by an operator.)
    """
    count = math.prod(shape)
    if count == 0 or torch.device(device).type != "cpu" or native.is_recording():
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.frombuffer(_mapped(count * dtype.itemsize), dtype=dtype).reshape(shape)


def _mapped(size: int) -> mmap.mmap:
    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if size >= HUGE_FROM and hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a system without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def field_steps(field: torch.Tensor) -> tuple[int, int]:
    """Elements of a field [pages, slots, heads, ...] from slot to slot, and from head to head."""
    return field.stride(1), field.stride(2)


def field_refusal(field: torch.Tensor) -> str | None:
    """Why compiled kernels cannot go over the slots of this field; None: they can."""
    rest = 1
    for size, step in zip(reversed(field.shape[3:]), reversed(field.stride()[3:]), strict=True):
        if size != 1 and step != rest:
            return "what a slot keeps of a head is not contiguous"
        rest *= size
    pages, slots = field.shape[:2]
    if pages > 1 and field.stride(0) != slots * field.stride(1):
        return "slots of a page and of the next do not lie at equal distances"
    return None


def unwritten(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """A tensor for results, whatever it holds.

    On the host, large ones lie in huge pages, and where a former one of about their size lay that
    is gone: the system clears memory before it gives it, which takes as long as many a kernel.
    """
    count = math.prod(shape)
    size = count * dtype.itemsize
    if size < ANEW_FROM or torch.device(device).type != "cpu" or native.is_recording():
        return torch.empty(shape, dtype=dtype, device=device)
    memory = _spare(size) or _mapped(size)
    view = memoryview(memory)  # lives as long as the tensor's storage
    weakref.finalize(view, _keep, memory).atexit = False
    return torch.frombuffer(view, dtype=dtype, count=count).reshape(shape)


def _keep(memory: mmap.mmap) -> None:
    """What nobody uses any more; what has been spare longest goes."""
    _spares.append(memory)
    while sum(map(len, _spares.copy())) > MOST_SPARE:
        with suppress(IndexError):  # another thread was faster
            _spares.pop(0)


def _spare(size: int) -> mmap.mmap | None:
    """Memory of `size` bytes to twice as many; if there is none, what is spare goes back."""
    for memory in sorted(_spares.copy(), key=len):
        if size <= len(memory) <= 2 * size:
            with suppress(ValueError):  # another thread was faster
                _spares.remove(memory)
                return memory
    _spares.clear()
    return None
