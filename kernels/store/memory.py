"""Zeroed memory that costs nothing before it is used."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence

import torch


def zeroed(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """A tensor of zeros; in memory of its own on the host, committed when it is first written.

    torch.zeros writes every byte: for gigabytes of pages that alone takes seconds. Here they come
    from an anonymous mapping, page-aligned, and stay alive as long as the tensor.
    """
    count = math.prod(shape)
    if count == 0 or torch.device(device).type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    memory = mmap.mmap(-1, count * dtype.itemsize, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=dtype).reshape(shape)
