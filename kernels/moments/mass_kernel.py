"""What far keys weigh, by their moments or bounds, in Triton.

Names: i_ index, p_ pointer, o_ offset, m_ mask, s_ stride.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_parts import LN2, LOG2E, entry_of, peak_and_shrink, row_tile


@triton.jit
def far_blocks(
    p_q, p_entries, p_table, p_cu, p_positions, p_mass,
    s_q_row, s_q_head, s_page, s_slot, s_head, s_table,
    max_pages, sequences, heads, window, sinks, scale,
    D: tl.constexpr, BD: tl.constexpr, GROUP: tl.constexpr, BG: tl.constexpr, BT: tl.constexpr,
    SP: tl.constexpr, BLOCK: tl.constexpr, PAGE: tl.constexpr, SLOTS: tl.constexpr,
    BN: tl.constexpr, BOUNDS: tl.constexpr,
):  # fmt: skip
    """The mass of BT rows and the heads of one KV head, added up over the blocks of their far keys.

    BOUNDS: an entry is the least and the greatest key of a block, not their mean and variances.
    """
    i_kv = tl.program_id(1)
    i_seq, begin, end = row_tile(tl.program_id(0), p_cu, sequences, BT, SP)
    if begin >= end:
        return
    o_m, o_d, o_n = tl.arange(0, BT * BG), tl.arange(0, BD), tl.arange(0, BN)
    i_row, i_head = begin + o_m // BG, i_kv * GROUP + o_m % BG
    m_m = (i_row < end) & (o_m % BG < GROUP)
    position = tl.load(p_positions + i_row, mask=m_m, other=-1).to(tl.int32)
    border = position - window + 1  # of the far keys
    o_row = i_row.to(tl.int64)
    p_rows = p_q + (o_row * s_q_row + i_head * s_q_head)[:, None]
    q = tl.load(p_rows + o_d[None, :], mask=m_m[:, None] & (o_d < D)[None, :], other=0.0)
    q = q.to(tl.float32) * scale
    with_first, with_second = q, 0.5 * q * q
    if BOUNDS:
        with_first, with_second = tl.where(q > 0.0, 0.0, q), tl.where(q < 0.0, 0.0, q)
    p_pages = p_table + i_seq.to(tl.int64) * s_table
    top = tl.full([BT * BG], float("-inf"), tl.float32)
    total = tl.zeros([BT * BG], tl.float32)
    most = tl.max(border, 0)
    for first in tl.range(sinks // BLOCK, tl.cdiv(tl.maximum(most, 0), BLOCK), BN):
        i_block = first + o_n
        m_b = i_block * BLOCK < most
        o_entry, m_n = entry_of(
            i_block, p_pages, s_page, s_slot, max_pages, m_b, BLOCK, BLOCK, PAGE, SLOTS
        )
        p_first = (p_entries + i_kv * s_head + o_entry)[None, :] + o_d[:, None]
        m_k = (o_d < D)[:, None] & m_n[None, :]
        one = tl.load(p_first, mask=m_k, other=0.0).to(tl.float32)
        two = tl.load(p_first + D, mask=m_k, other=0.0).to(tl.float32)
        s = tl.dot(with_first, one, input_precision="ieee")
        s = tl.dot(with_second, two, s, input_precision="ieee")
        since, until = tl.maximum(i_block * BLOCK, sinks), (i_block + 1) * BLOCK
        count = tl.minimum(until[None, :], border[:, None]) - since[None, :]
        s = tl.where(m_n[None, :], s, float("nan"))
        s = s * LOG2E + tl.log2(tl.maximum(count, 1).to(tl.float32))
        s = tl.where(count > 0, s, float("-inf"))
        top, safe, shrink = peak_and_shrink(top, tl.max(s, 1))
        total = total * shrink + tl.sum(tl.exp2(s - safe[:, None]), 1)
    # A sum of nothing but minus infinities is no small mass: numbers were too large.
    total = tl.where(total == 0.0, float("nan"), total)
    mass = (top + tl.log2(total)) * LN2
    mass = tl.where(border > sinks, mass, float("-inf"))
    tl.store(p_mass + o_row * heads + i_head, mass, mask=m_m)


@triton.jit
def far_whole(
    p_q, p_entries, p_table, p_cu, p_positions, p_mass,
    s_q_row, s_q_head, s_page, s_slot, s_head, s_table,
    max_pages, sequences, heads, window, sinks, scale,
    D: tl.constexpr, BD: tl.constexpr, GROUP: tl.constexpr, BG: tl.constexpr, SP: tl.constexpr,
    BLOCK: tl.constexpr, PAGE: tl.constexpr, SLOTS: tl.constexpr, SPREAD: tl.constexpr,
    ROWS: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """The mass of one row and the heads of one KV head, by the moments of all its far keys.

    BR 0: variances, in the entry of its last block; else a covariance, ROWS rows of it in each of
    the last SPREAD entries, taken BR at a time.
    """
    i_kv = tl.program_id(1)
    i_seq, i_row, end = row_tile(tl.program_id(0), p_cu, sequences, 1, SP)
    if i_row >= end:
        return
    o_g, o_d = tl.arange(0, BG), tl.arange(0, BD)
    m_g = o_g < GROUP
    i_head = i_kv * GROUP + o_g
    border = tl.load(p_positions + i_row).to(tl.int32) - window + 1
    p_mine = p_mass + i_row.to(tl.int64) * heads + i_head
    if border <= sinks:
        tl.store(p_mine, tl.full([BG], float("-inf"), tl.float32), mask=m_g)
        return
    last = (border - 1) // BLOCK
    if last + 1 - sinks // BLOCK < SPREAD:  # not known yet
        tl.store(p_mine, tl.full([BG], float("inf"), tl.float32), mask=m_g)
        return
    p_rows = p_q + (i_row.to(tl.int64) * s_q_row + i_head * s_q_head)[:, None]
    q = tl.load(p_rows + o_d[None, :], mask=m_g[:, None] & (o_d < D)[None, :], other=0.0)
    q = q.to(tl.float32) * scale
    p_pages = p_table + i_seq.to(tl.int64) * s_table
    p_own = p_entries + i_kv * s_head
    o_entry, known = entry_of(
        last, p_pages, s_page, s_slot, max_pages, last >= 0, BLOCK, BLOCK, PAGE, SLOTS
    )
    mean = tl.load(p_own + o_entry + o_d, mask=(o_d < D) & known, other=0.0)
    score = tl.sum(q * mean[None, :], 1)
    if BR == 0:
        second = tl.load(p_own + o_entry + D + o_d, mask=(o_d < D) & known, other=0.0)
        score += 0.5 * tl.sum(q * q * second[None, :], 1)
    else:
        o_r = tl.arange(0, BR)
        for i_block in tl.range(last - SPREAD + 1, last + 1):
            o_entry, there = entry_of(
                i_block, p_pages, s_page, s_slot, max_pages, last >= 0, BLOCK, BLOCK, PAGE, SLOTS
            )
            known = known & there
            for first in range(0, ROWS, BR):
                i_r = i_block % SPREAD * ROWS + first + o_r
                m_r = (first + o_r < ROWS) & (i_r < D)
                p_row = p_own + o_entry + (1 + first + o_r)[None, :] * D + o_d[:, None]
                rows = tl.load(p_row, mask=m_r[None, :] & (o_d < D)[:, None] & there, other=0.0)
                mine = tl.load(p_rows + i_r[None, :], mask=m_g[:, None] & m_r[None, :], other=0.0)
                found = tl.dot(q, rows, input_precision="ieee")
                score += 0.5 * tl.sum(found * (mine.to(tl.float32) * scale), 1)
    score = tl.where(known, score, float("nan"))
    tl.store(p_mine, score + tl.log((border - sinks).to(tl.float32)), mask=m_g)
