"""Attention over lists that the rows themselves change, in Triton, without turns: what a row sees
is what lay in its list before the rows, and the rows up to itself, but for what rows up to itself
have replaced. So it is enough to know of every key by which row it ends.

Names: i_ index, p_ pointer, o_ offset, m_ mask, s_ stride, b_ block of numbers.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_parts import NO_BLOCK, peak_and_shrink, product, row_tile


@triton.jit
def key_ends(
    p_slots, p_replaces, p_cu, p_table, p_row_ends, p_slot_ends, sequences, s_table, max_pages,
    BT: tl.constexpr, BN: tl.constexpr, SP: tl.constexpr, PAGE: tl.constexpr,
):  # fmt: skip
    """By which row each row's own key is replaced; and, [list, slot], what lay there before."""
    i_s, first, end = row_tile(tl.program_id(0), p_cu, sequences, BT, SP)
    if first >= end:
        return
    begin = tl.load(p_cu + i_s)
    row = first + tl.arange(0, BT)
    m_t = row < end
    slot = tl.load(p_slots + row, mask=m_t, other=-1)
    ends, earlier = tl.full([BT], NO_BLOCK, tl.int32), tl.zeros([BT], tl.int32)
    for start in tl.range(begin, end, BN):
        other = start + tl.arange(0, BN)
        theirs = tl.load(p_slots + other, mask=other < end, other=-2)
        same = slot[:, None] == theirs[None, :]
        later = same & (other[None, :] > row[:, None])
        ends = tl.minimum(ends, tl.min(tl.where(later, other[None, :], NO_BLOCK), 1))
        before = same & (other[None, :] < row[:, None])
        earlier = tl.maximum(earlier, tl.max(before.to(tl.int32), 1))
    tl.store(p_row_ends + row, ends, mask=m_t)
    # Where in the list: by its page's place in the table.
    place = tl.full([BT], -1, tl.int32)
    for start in tl.range(0, max_pages, BN):
        column = start + tl.arange(0, BN)
        page = tl.load(
            p_table + i_s.to(tl.int64) * s_table + column, mask=column < max_pages, other=-1
        )
        here = (slot // PAGE)[:, None] == page[None, :]
        place = tl.maximum(place, tl.max(tl.where(here, column[None, :], -1), 1))
    replaces = tl.load(p_replaces + row, mask=m_t, other=0)
    m_old = m_t & (replaces != 0) & (earlier == 0) & (place >= 0)
    at = i_s.to(tl.int64) * max_pages * PAGE + place * PAGE + slot % PAGE
    tl.store(p_slot_ends + at, row, mask=m_old)


@triton.jit
def add_keys(
    b_acc, b_sum, b_max, b_q, p_k, p_v, m_n, m_seen, scale,
    D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Keys and values whose first channels are at p_k and p_v, [n], into the running results."""
    o_d, o_v = tl.arange(0, BD), tl.arange(0, BDV)
    b_k = tl.load(p_k[None, :] + o_d[:, None], mask=(o_d < D)[:, None] & m_n[None, :], other=0.0)
    b_s = tl.where(m_seen, product(b_q, b_k, UPCAST) * scale, float("-inf"))
    b_max, safe, keep = peak_and_shrink(b_max, tl.max(b_s, 1))
    b_p = tl.exp2(b_s - safe[:, None])
    b_v = tl.load(p_v[:, None] + o_v[None, :], mask=m_n[:, None] & (o_v < DV)[None, :], other=0.0)
    b_acc = b_acc * keep[:, None] + product(b_p.to(b_v.dtype), b_v, UPCAST)
    return b_acc, b_sum * keep + tl.sum(b_p, 1), b_max


@triton.jit
def turn_tiles(
    p_q, p_k, p_v, p_k_pages, p_v_pages, p_table, p_cu, p_hi, p_replaces, p_row_ends, p_slot_ends,
    p_out, sequences, s_q, s_k, s_v, s_k_page, s_v_page, s_table, max_pages, scale,
    BT: tl.constexpr, BN: tl.constexpr, SP: tl.constexpr, PAGE: tl.constexpr,
    D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """A tile of rows of one list: over what lay in its pages, then over the rows' own keys."""
    i_s, first, end = row_tile(tl.program_id(0), p_cu, sequences, BT, SP)
    if first >= end:
        return
    begin = tl.load(p_cu + i_s)
    row = first + tl.arange(0, BT)
    m_t = row < end
    o_d, o_v, o_n = tl.arange(0, BD), tl.arange(0, BDV), tl.arange(0, BN)
    b_q = tl.load(
        p_q + row.to(tl.int64)[:, None] * s_q + o_d[None, :],
        mask=m_t[:, None] & (o_d < D)[None, :],
        other=0.0,
    )
    b_acc = tl.zeros([BT, BDV], tl.float32)
    b_sum = tl.zeros([BT], tl.float32)
    b_max = tl.full([BT], float("-inf"), tl.float32)
    # The first row's list, and it itself unless it took another's place.
    length = tl.load(p_hi + begin) - (tl.load(p_replaces + begin) == 0).to(tl.int32)
    length = tl.minimum(length, max_pages * PAGE)
    p_pages = p_table + i_s.to(tl.int64) * s_table
    p_ends = p_slot_ends + i_s.to(tl.int64) * max_pages * PAGE
    for start in tl.range(0, length, BN):
        page = tl.load(p_pages + start // PAGE).to(tl.int64)
        m_n = (start + o_n < length) & (page >= 0)
        ends = tl.load(p_ends + start + o_n, mask=m_n, other=0)
        m_seen = m_n[None, :] & (ends[None, :] > row[:, None])
        at = start % PAGE + o_n
        b_acc, b_sum, b_max = add_keys(
            b_acc, b_sum, b_max, b_q,
            p_k_pages + page * s_k_page + at * D, p_v_pages + page * s_v_page + at * DV,
            m_n, m_seen, scale, D, DV, BD, BDV, UPCAST,
        )  # fmt: skip
    for start in tl.range(begin, tl.minimum(first + BT, end), BN):
        other = start + o_n
        m_n = other < end
        ends = tl.load(p_row_ends + other, mask=m_n, other=0)
        m_seen = (other[None, :] <= row[:, None]) & (ends[None, :] > row[:, None])
        b_acc, b_sum, b_max = add_keys(
            b_acc, b_sum, b_max, b_q,
            p_k + other.to(tl.int64) * s_k, p_v + other.to(tl.int64) * s_v,
            m_n, m_seen & m_n[None, :], scale, D, DV, BD, BDV, UPCAST,
        )  # fmt: skip
    b_out = b_acc / tl.where(b_sum > 0.0, b_sum, 1.0)[:, None]
    p_row = p_out + row.to(tl.int64)[:, None] * DV + o_v[None, :]
    tl.store(p_row, b_out, mask=m_t[:, None] & (o_v < DV)[None, :])
