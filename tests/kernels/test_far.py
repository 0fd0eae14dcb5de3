"""Addresses beyond 2^31 and 2^32 elements: memory is reserved, and touched only far away."""

from __future__ import annotations

import mmap
import sys

import pytest
import torch

from saccade.kernels.attend import Keys, attend
from saccade.kernels.store import PageLayout, write_pages

from .paged import slots_of

MAP_NORESERVE = 0x4000  # Linux: mmap names it only from Python 3.13 on
PAGE, HEADS, DIM = 256, 2, 128
ELEMENTS = PAGE * HEADS * DIM  # in a page of K or V: 2^16
PAGES = 2**32 // ELEMENTS + 40

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="reserves memory in the way of Linux"
)


def reserved(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A tensor of zeros without memory behind it until it is touched."""
    size = dtype.itemsize
    for extent in shape:
        size *= extent
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
    try:
        memory = mmap.mmap(-1, size, flags=flags)
    except OSError as error:
        pytest.skip(f"cannot reserve {size >> 30} GiB of address space: {error}")
    return torch.frombuffer(memory, dtype=dtype).view(shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_far_pages(isa, dtype):
    """Pages around element 2^31 and beyond 2^32 are written and read where they are."""
    layout = PageLayout(PAGE)
    k_pages, v_pages = (
        reserved(shape, dtype) for shape in layout.shapes(PAGES, HEADS, DIM, DIM, dtype)
    )
    far = [PAGES - 1, 2**31 // ELEMENTS + 7, PAGES - 20, 2**31 // ELEMENTS - 1]
    length = PAGE * len(far) - 9
    k, v = (torch.randn((length, HEADS, DIM)).to(dtype) for _ in range(2))
    q = torch.randn((6, 4, DIM)).to(dtype)
    cu, positions = torch.tensor([0, 6], dtype=torch.int32), torch.arange(length - 6, length)

    def answer(k_pages, v_pages, ids):
        table = torch.tensor([ids], dtype=torch.int32)
        write_pages(layout, k_pages, v_pages, k, v, slots_of(table[0], torch.arange(length), PAGE))
        keys = Keys(cu, positions, table)
        return attend(layout, q, k_pages, v_pages, keys, scale=0.1)

    out, lse = answer(k_pages, v_pages, far)
    near_k, near_v = layout.allocate(len(far), HEADS, DIM, DIM, dtype)
    near_out, near_lse = answer(near_k, near_v, [0, 1, 2, 3])
    assert torch.equal(out, near_out) and torch.equal(lse, near_lse)
    assert torch.equal(k_pages[far], near_k) and torch.equal(v_pages[far], near_v)
    wrapped = [(page * ELEMENTS % 2**32) // ELEMENTS for page in (far[0], far[2])]
    assert not k_pages[wrapped].any() and not v_pages[wrapped].any()
