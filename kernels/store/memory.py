"""Host memory: zeroed that costs nothing before it is used, and large results."""

from __future__ import annotations

import math
import mmap
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
    memory = mmap.mmap(-1, count * dtype.itemsize, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if count * dtype.itemsize >= HUGE_FROM and hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a system without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).reshape(shape)


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
    """A tensor for results, whatever it holds; on the host large ones lie in huge pages, which are
    committed a few hundred times as fast.
    """
    size = math.prod(shape) * dtype.itemsize
    if size < ANEW_FROM or torch.device(device).type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    return zeroed(shape, dtype, device)
