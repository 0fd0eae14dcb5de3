"""Page writes in Triton."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def clear_pages(p_pages, p_slots, pages, s_page, s_head, NUMBERS: tl.constexpr, PAGE: tl.constexpr):
    """Zeros in what a page holds of one head, NUMBERS in a row, where row i is its first token."""
    slot = tl.load(p_slots + tl.program_id(0))
    if slot < 0 or slot >= pages * PAGE or slot % PAGE != 0:
        return
    p_page = p_pages + slot // PAGE * s_page + tl.program_id(1) * s_head
    for first in tl.range(0, NUMBERS, 1024):
        o_n = first + tl.arange(0, 1024)
        zero = tl.zeros([1024], p_pages.dtype.element_ty)
        tl.store(p_page + o_n, zero, mask=o_n < NUMBERS)


@triton.jit
def put_rows(
    p_rows, p_pages, p_slots, pages, s_row, s_row_head, s_page, s_head,
    D: tl.constexpr, BD: tl.constexpr, PAGE: tl.constexpr,
):  # fmt: skip
    """Row i of one head to its slot."""
    i_row, i_head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    slot = tl.load(p_slots + i_row)
    if slot < 0 or slot >= pages * PAGE:
        return
    o_d = tl.arange(0, BD)
    m_d = o_d < D
    row = tl.load(p_rows + i_row * s_row + i_head * s_row_head + o_d, mask=m_d, other=0.0)
    p_to = p_pages + slot // PAGE * s_page + i_head * s_head + slot % PAGE * D
    tl.store(p_to + o_d, row, mask=m_d)
