"""Page writes in Triton: a program takes some rows of one head."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["rows", "pages"])
def clear_pages(
    p_pages, p_slots, rows, pages, s_page, s_head,
    NUMBERS: tl.constexpr, PAGE: tl.constexpr, BR: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Zeros in what a page holds of one head, NUMBERS in a row, where a row is its first token."""
    o_r = tl.program_id(0) * BR + tl.arange(0, BR)
    slot = tl.load(p_slots + o_r, mask=o_r < rows, other=-1)
    m_r = (slot >= 0) & (slot < pages * PAGE) & (slot % PAGE == 0)
    if tl.max(m_r.to(tl.int32), 0) == 0:
        return
    p_page = p_pages + slot // PAGE * s_page + tl.program_id(1).to(tl.int64) * s_head
    for first in tl.range(0, NUMBERS, BN):
        o_n = first + tl.arange(0, BN)
        zeros = tl.zeros([BR, BN], p_pages.dtype.element_ty)
        tl.store(p_page[:, None] + o_n[None, :], zeros, mask=m_r[:, None] & (o_n < NUMBERS)[None])


@triton.jit(do_not_specialize=["rows", "pages"])
def put_rows(
    p_rows, p_pages, p_slots, rows, pages, s_row, s_row_head, s_page, s_head,
    D: tl.constexpr, BD: tl.constexpr, PAGE: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """Rows to their slots."""
    o_r = tl.program_id(0) * BR + tl.arange(0, BR)
    i_head = tl.program_id(1).to(tl.int64)
    slot = tl.load(p_slots + o_r, mask=o_r < rows, other=-1)
    o_d = tl.arange(0, BD)
    m = ((slot >= 0) & (slot < pages * PAGE))[:, None] & (o_d < D)[None, :]
    p_from = p_rows + o_r.to(tl.int64) * s_row + i_head * s_row_head
    found = tl.load(p_from[:, None] + o_d[None, :], mask=m, other=0.0)
    p_to = p_pages + slot // PAGE * s_page + i_head * s_head + slot % PAGE * D
    tl.store(p_to[:, None] + o_d[None, :], found, mask=m)
