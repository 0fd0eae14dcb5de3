"""Selection by pooled weights in three Triton kernels: every row's log-sum-exp, by parts of its
entries; a rank of every block; and, when the ranks are sorted, the lists.

One program that keeps a row's best blocks in registers, as in `select`, is too narrow here. Lists
are long (96 blocks, 513), there is one for all query heads of an owner, and a step of one sequence
would keep two programs busy. So the ranks are written, for so many rows at a time as `triton`
allows: they are few, one for every block and owner.

Names: i_ index, p_ pointer, o_ offset, m_ mask, s_ stride.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_parts import (
    LEAST,
    NO_BLOCK,
    block_of,
    entry_of,
    peak_and_shrink,
    rank_key,
    row_tile,
    scores_of,
)

MOST = tl.constexpr(120.0)  # powers of two that a score may lie above a coarse lse


@triton.jit
def complete_at(position, SIZE: tl.constexpr, STRIDE: tl.constexpr):
    """Entries whose tokens a row has all seen; a negative quotient would be rounded up."""
    return tl.where(position + 1 >= SIZE, (position + 1 - SIZE) // STRIDE + 1, 0)


@triton.jit
def add_entries(
    top, total, q, sees, begin, p_own, p_pages, s_page, s_slot, max_pages, scale,
    D: tl.constexpr, BD: tl.constexpr, SIZE: tl.constexpr, STRIDE: tl.constexpr,
    PAGE: tl.constexpr, SLOTS: tl.constexpr, BN: tl.constexpr, PART: tl.constexpr, UPCAST,
):  # fmt: skip
    """(top, total) of running sums of 2^score that entries begin .. begin + PART - 1 join, of which
    a row `sees` those before that one.
    """
    end = tl.minimum(begin + PART, tl.max(sees, 0))
    for first in tl.range(begin, end, BN):
        i_entry = first + tl.arange(0, BN)
        o_entry, m_n = entry_of(
            i_entry, p_pages, s_page, s_slot, max_pages, i_entry < end, SIZE, STRIDE, PAGE, SLOTS
        )
        s = scores_of(q, q, p_own + o_entry, m_n, scale, D, BD, 0, UPCAST)
        counts = (i_entry[None, :] < sees[:, None]) & m_n[None, :] & (s == s)  # NaN does not
        s = tl.where(counts, s, float("-inf"))
        top, safe, shrink = peak_and_shrink(top, tl.max(s, 1))
        total = total * shrink + tl.sum(tl.exp2(s - safe[:, None]), 1)
    return top, total


@triton.jit
def sum_rows(
    p_q, p_fine, p_coarse, p_table, p_cu, p_positions, p_lse,
    s_q_row, s_q_head, s_fine_page, s_fine_slot, s_fine_head,
    s_coarse_page, s_coarse_slot, s_coarse_head, s_table, s_part,
    max_pages, sequences, heads, scale,
    D: tl.constexpr, BD: tl.constexpr, GROUP: tl.constexpr, BG: tl.constexpr, BT: tl.constexpr,
    SP: tl.constexpr, SIZE: tl.constexpr, STRIDE: tl.constexpr, SLOTS: tl.constexpr,
    COARSE_SIZE: tl.constexpr, COARSE_STRIDE: tl.constexpr, COARSE_SLOTS: tl.constexpr,
    PAGE: tl.constexpr, BN: tl.constexpr, PART: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """The log-sum-exp of BT rows over one part of their entries: of the coarse ones where a row
    sees any, else of the fine ones. COARSE_SIZE 0: there are no coarse ones.
    """
    i_kv, i_part = tl.program_id(1), tl.program_id(2)
    i_seq, begin, end = row_tile(tl.program_id(0), p_cu, sequences, BT, SP)
    if begin >= end:
        return
    o_m, o_d = tl.arange(0, BT * BG), tl.arange(0, BD)
    i_row, i_head = begin + o_m // BG, i_kv * GROUP + o_m % BG
    m_m = (i_row < end) & (o_m % BG < GROUP)
    position = tl.load(p_positions + i_row, mask=m_m, other=-1).to(tl.int32)
    o_row = i_row.to(tl.int64)
    p_rows = p_q + (o_row * s_q_row + i_head * s_q_head)[:, None]
    q = tl.load(p_rows + o_d[None, :], mask=m_m[:, None] & (o_d < D)[None, :], other=0.0)
    p_pages = p_table + i_seq.to(tl.int64) * s_table
    top = tl.full([BT * BG], float("-inf"), tl.float32)
    total = tl.zeros([BT * BG], tl.float32)
    sees = complete_at(position, SIZE, STRIDE)
    if COARSE_SIZE > 0:
        sees_coarse = complete_at(position, COARSE_SIZE, COARSE_STRIDE)
        sees = tl.where(sees_coarse > 0, 0, sees)
        top, total = add_entries(
            top, total, q, sees_coarse, i_part * PART, p_coarse + i_kv * s_coarse_head, p_pages,
            s_coarse_page, s_coarse_slot, max_pages, scale,
            D, BD, COARSE_SIZE, COARSE_STRIDE, PAGE, COARSE_SLOTS, BN, PART, UPCAST,
        )  # fmt: skip
    top, total = add_entries(
        top, total, q, sees, i_part * PART, p_fine + i_kv * s_fine_head, p_pages,
        s_fine_page, s_fine_slot, max_pages, scale,
        D, BD, SIZE, STRIDE, PAGE, SLOTS, BN, PART, UPCAST,
    )  # fmt: skip
    lse = tl.where(total == 0.0, float("-inf"), top + tl.log2(tl.where(total == 0.0, 1.0, total)))
    tl.store(p_lse + i_part.to(tl.int64) * s_part + o_row * heads + i_head, lse, mask=m_m)


@triton.jit
def joined_parts(p_lse, s_part, parts, m_m, ROWS: tl.constexpr):
    """The log-sum-exp of rows, exponents of 2, from that of every part of their entries."""
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    for _ in tl.range(0, parts):
        part = tl.load(p_lse, mask=m_m, other=float("-inf"))
        top, safe, shrink = peak_and_shrink(top, part)
        total = total * shrink + tl.exp2(part - safe)
        p_lse += s_part
    return tl.where(total == 0.0, float("-inf"), top + tl.log2(tl.where(total == 0.0, 1.0, total)))


@triton.jit
def rank_blocks(
    p_q, p_fine, p_table, p_cu, p_positions, p_lse, p_keys,
    s_q_row, s_q_head, s_page, s_slot, s_head, s_table, s_part,
    max_pages, sequences, heads, owners, parts, blocks, forced_first, forced_recent, scale,
    D: tl.constexpr, BD: tl.constexpr, GROUP: tl.constexpr, BG: tl.constexpr, BT: tl.constexpr,
    SP: tl.constexpr, SIZE: tl.constexpr, STRIDE: tl.constexpr, SLOTS: tl.constexpr,
    BLOCK: tl.constexpr, PAGE: tl.constexpr, BB: tl.constexpr, PROBABILITY: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """The ranks of BB blocks for BT rows of one owner, LEAST where a block may not be listed.

    Turn `tap` takes, for every block, the tap-th of the entries that overlap it.
    forced_recent 0: the row's own block is, while it is unfinished.
    """
    i_kv = tl.program_id(1)
    i_seq, begin, end = row_tile(tl.program_id(0), p_cu, sequences, BT, SP)
    if begin >= end:
        return
    o_m, o_d = tl.arange(0, BT * BG), tl.arange(0, BD)
    i_row, i_head = begin + o_m // BG, i_kv * GROUP + o_m % BG
    m_m = (i_row < end) & (o_m % BG < GROUP)
    position = tl.load(p_positions + i_row, mask=m_m, other=-1).to(tl.int32)
    sees = complete_at(position, SIZE, STRIDE)
    most = tl.max(sees, 0)
    i_block = tl.program_id(2) * BB + tl.arange(0, BB)
    weight = tl.full([BT, BB], float("-inf"), tl.float32)
    first_entry = tl.program_id(2) * (BB * BLOCK // STRIDE) - (SIZE // STRIDE - 1)
    if first_entry < most:
        o_row = i_row.to(tl.int64)
        p_rows = p_q + (o_row * s_q_row + i_head * s_q_head)[:, None]
        q = tl.load(p_rows + o_d[None, :], mask=m_m[:, None] & (o_d < D)[None, :], other=0.0)
        p_pages = p_table + i_seq.to(tl.int64) * s_table
        lse = tl.zeros([BT * BG], tl.float32)
        if PROBABILITY:
            lse = joined_parts(p_lse + o_row * heads + i_head, s_part, parts, m_m, BT * BG)
        for tap in range((BLOCK + SIZE) // STRIDE - 1):
            i_entry = i_block * (BLOCK // STRIDE) + tap - (SIZE // STRIDE - 1)
            m_e = (i_entry >= 0) & (i_entry < most)
            o_entry, m_n = entry_of(
                i_entry, p_pages, s_page, s_slot, max_pages, m_e, SIZE, STRIDE, PAGE, SLOTS
            )
            p_own = p_fine + i_kv * s_head + o_entry
            x = scores_of(q, q, p_own, m_n, scale, D, BD, 0, UPCAST)
            if PROBABILITY:
                x -= lse[:, None]
                x = tl.exp2(tl.where(x > MOST, MOST, x))  # NaN stays
            else:
                x = tl.where(x < 0.0, 0.0, x)
            mass = tl.sum(tl.reshape(tl.where(m_m[:, None], x, 0.0), [BT, BG, BB]), 1)
            seen = tl.max(tl.reshape(sees, [BT, BG]), 1)[:, None] > i_entry[None, :]
            counts = seen & m_n[None, :] & (mass == mass)
            weight = tl.maximum(weight, tl.where(counts, mass, float("-inf")))
    i_token = begin + tl.arange(0, BT)
    m_t = i_token < end
    at = tl.load(p_positions + i_token, mask=m_t, other=0).to(tl.int32)
    own = at // BLOCK
    recent = forced_recent + tl.zeros([BT], tl.int32)
    if forced_recent == 0:
        recent = tl.where((at + 1) % BLOCK != 0, 1, 0)
    forced = (i_block < forced_first)[None, :] | (i_block[None, :] > (own - recent)[:, None])
    weight = tl.where(forced, float("inf"), weight)
    fit = (i_block[None, :] <= own[:, None]) & (weight > float("-inf"))
    keys = tl.where(fit, rank_key(weight, i_block[None, :]), LEAST)
    p_to = p_keys + ((i_token.to(tl.int64) * owners + i_kv) * blocks)[:, None] + i_block[None, :]
    tl.store(p_to, keys, mask=m_t[:, None] & (i_block < blocks)[None, :])


@triton.jit
def write_lists(
    p_best, p_positions, p_ids, rows, owners, found, listed, KEEP_OWN: tl.constexpr,
    BLOCK: tl.constexpr, BR: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Lists of BR rows of owners from their `found` best ranks, descending: ascending blocks.

    KEEP_OWN: the last place is the unfinished own block's and no other's.
    """
    i = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    o_w = tl.arange(0, WIDTH)
    m_row = i < rows
    m_w = m_row[:, None] & (o_w < found)[None, :]
    best = tl.load(p_best + i[:, None] * found + o_w[None, :], mask=m_w, other=LEAST)
    ids = block_of(best)
    if KEEP_OWN:
        at = tl.load(p_positions + i // owners, mask=m_row, other=0)
        room = tl.where((at + 1) % BLOCK == 0, listed - 1, listed)
        ids = tl.where(o_w[None, :] < room[:, None], ids, NO_BLOCK)
    ids = tl.sort(ids, dim=1)
    p_to = p_ids + i[:, None] * listed + o_w[None, :]
    m_to = m_row[:, None] & (o_w < listed)[None, :]
    tl.store(p_to, tl.where(ids == NO_BLOCK, -1, ids), mask=m_to)
