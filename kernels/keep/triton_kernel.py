"""Which tokens expert-choice heads keep, in Triton: a program goes through the rows of one list.

Names: i_ index, p_ pointer, o_ offset, m_ mask, s_ stride.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_parts import NO_BLOCK

ALWAYS = tl.constexpr(2**31 - 1)
NO_TOKEN = tl.constexpr(2**63 - 1)  # above every key of a kept token


@triton.jit
def ordered(score, m_always):
    """int64 of 32 bits that orders as scores do, NaN as -1; ALWAYS, above all of them, where so."""
    number = tl.where(score != score, -1.0, score) + 0.0  # -0 becomes 0
    bits = number.to(tl.int32, bitcast=True)
    order = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)
    return tl.where(m_always, ALWAYS, order)


@triton.jit
def page_at(p_table, i_page, max_pages, m_wanted):
    """The id of a page of a list or text, -1 where it has none; 64 bits wide, for addresses."""
    m_page = m_wanted & (i_page < max_pages)
    return tl.load(p_table + i_page, mask=m_page, other=-1).to(tl.int64)


@triton.jit
def above_thresholds(
    p_scores, p_thresholds, p_flags, p_lengths, p_table, p_cu, p_positions, p_after, p_slots,
    heads, s_table, max_pages, PAGE: tl.constexpr, BT: tl.constexpr, FIRST: tl.constexpr,
):  # fmt: skip
    """One head of one sequence, BT rows at a time. With A tokens above the threshold so far, the
    length after row t is A[t] + min(length before, min over u <= t of after[u] - A[u]).
    """
    i_s, i_head = tl.program_id(0), tl.program_id(1)
    begin, end = tl.load(p_cu + i_s), tl.load(p_cu + i_s + 1)
    p_pages = p_table + i_s.to(tl.int64) * s_table
    limit = tl.load(p_thresholds + i_head)
    o_t, o_slot = tl.arange(0, BT), tl.arange(0, PAGE)
    start = tl.load(p_positions + begin)
    last = tl.maximum(start - 1, 0)
    page = page_at(p_pages, last // PAGE, max_pages, start > 0)
    m_own = (page >= 0) & (o_slot <= last % PAGE)
    flags = tl.load(p_flags + (page * PAGE + o_slot) * heads + i_head, mask=m_own, other=0)
    length = tl.load(p_lengths + page * heads + i_head, mask=page >= 0, other=0)
    length += tl.sum(flags.to(tl.int32), 0)
    for first in tl.range(begin, end, BT):
        row = first + o_t
        m_t = row < end
        own = row.to(tl.int64) * heads + i_head
        score = tl.load(p_scores + own, mask=m_t, other=float("nan"))
        position = tl.load(p_positions + row, mask=m_t, other=0)
        after = tl.load(p_after + row, mask=m_t, other=NO_BLOCK)
        above = (score > limit).to(tl.int32)  # never for NaN
        if FIRST:
            above = tl.where(m_t & (position == 0), 1, above)
        total = tl.cumsum(above, 0)
        left = tl.where(o_t[None, :] <= o_t[:, None], (after - total)[None, :], NO_BLOCK)
        now = total + tl.minimum(length, tl.min(left, 1))
        left = tl.where(o_t[None, :] < o_t[:, None], (after - total)[None, :], NO_BLOCK)
        before = total - above + tl.minimum(length, tl.min(left, 1))
        kept = now > before
        tl.store(p_slots + own, tl.where(kept, before, -1), mask=m_t)
        pages = page_at(p_pages, position // PAGE, max_pages, m_t)
        p_flag = p_flags + (pages * PAGE + position % PAGE) * heads + i_head
        tl.store(p_flag, kept.to(tl.uint8), mask=pages >= 0)
        m_begins = (pages >= 0) & (position % PAGE == 0)
        tl.store(p_lengths + pages * heads + i_head, before, mask=m_begins)
        length = tl.max(tl.where(m_t, now, 0), 0)  # it never falls


@triton.jit
def worst_of(
    p_scores, p_places, p_pages, i_head, length, heads, max_pages,
    PAGE: tl.constexpr, BN: tl.constexpr, FIRST: tl.constexpr,
):  # fmt: skip
    """(key, slot) of the token that goes first of a list: the lowest score, of equal ones that of
    the lowest position; its key has the score's order in the higher half.
    """
    o_n = tl.arange(0, BN)
    worst, at = tl.full([], NO_TOKEN, tl.int64), tl.zeros([], tl.int32)
    for first in tl.range(0, length, BN):
        slot = first + o_n
        page = page_at(p_pages, slot // PAGE, max_pages, slot < length)
        where = (page * heads + i_head) * PAGE + slot % PAGE
        score = tl.load(p_scores + where, mask=page >= 0, other=0.0)
        place = tl.load(p_places + where, mask=page >= 0, other=0)
        key = ordered(score, (place <= 0) & FIRST) * 4294967296 + place
        key = tl.where(page >= 0, key, NO_TOKEN)
        least = tl.min(key, 0)
        if least < worst:
            worst = least
            at = tl.min(tl.where(key == least, slot, NO_BLOCK), 0)
    return worst, at


@triton.jit
def best_so_far(
    p_scores, p_kept, p_places, p_table, p_cu, p_positions, p_before, p_after, p_slots,
    heads, s_table, max_pages, PAGE: tl.constexpr, BN: tl.constexpr, FIRST: tl.constexpr,
):  # fmt: skip
    """One head of one sequence, row after row. The list is looked through only when its worst token
    is asked for and has gone: most rows are below it, and what is appended is compared with it.
    """
    i_s, i_head = tl.program_id(0), tl.program_id(1)
    begin, end = tl.load(p_cu + i_s), tl.load(p_cu + i_s + 1)
    p_pages = p_table + i_s.to(tl.int64) * s_table
    known = 0  # whether `worst`, at slot `at`, is the list's
    worst, at = tl.full([], NO_TOKEN, tl.int64), tl.zeros([], tl.int32)
    for row in tl.range(begin, end):
        own = (tl.zeros([], tl.int64) + row) * heads + i_head
        score = tl.load(p_scores + own)
        score = tl.where(score != score, -1.0, score)
        position = tl.load(p_positions + row)
        length, most = tl.load(p_before + row), tl.load(p_after + row)
        order = ordered(score, (position <= 0) & FIRST)
        key = order * 4294967296 + position
        slot = tl.full([], -1, tl.int32)
        if length < most:
            slot = length
            if (known != 0) & (key < worst):
                worst, at = key, length
        else:
            if known == 0:
                worst, at = worst_of(
                    p_kept, p_places, p_pages, i_head, length, heads, max_pages, PAGE, BN, FIRST
                )
                known = 1
            beaten = worst >> 32
            if (beaten <= order) & (beaten < ALWAYS) & (worst != NO_TOKEN):
                slot = at
                known = 0
        tl.store(p_slots + own, slot)
        page = page_at(p_pages, slot // PAGE, max_pages, slot >= 0)
        where = (page * heads + i_head) * PAGE + slot % PAGE
        tl.store(p_kept + where, score, mask=page >= 0)
        tl.store(p_places + where, position.to(tl.int32), mask=page >= 0)
        tl.debug_barrier()  # all threads read what one has written


@triton.jit
def top_of_texts(
    p_scores, p_cu, p_after, p_slots, heads, rows, BN: tl.constexpr, FIRST: tl.constexpr
):
    """One head of one whole text; scores lie head by head. The lowest score that is kept is found
    eight bits at a time; then what is no lower gets its slots in the order of the text.
    """
    i_s, i_head = tl.program_id(0), tl.program_id(1)
    begin, end = tl.load(p_cu + i_s), tl.load(p_cu + i_s + 1)
    p_own = p_scores + i_head.to(tl.int64) * rows
    o_n, o_bin = tl.arange(0, BN), tl.arange(0, 256)
    lowest = tl.zeros([], tl.int64)  # the highest bits of the lowest order that is kept
    left = tl.load(p_after + end - 1)  # how many of these bits are kept
    alike = tl.zeros([], tl.int32)  # and how many there are
    for digit in tl.static_range(4):
        shift = 24 - 8 * digit
        count = tl.zeros([256], tl.int32)
        for first in tl.range(begin, end, BN):
            row = first + o_n
            score = tl.load(p_own + row, mask=row < end, other=0.0)
            order = ordered(score, (row == begin) & FIRST) + 2147483648
            fit = (row < end) & (order >> (shift + 8) == lowest)
            count += tl.histogram(((order >> shift) & 255).to(tl.int32), 256, mask=fit)
        above = tl.sum(count, 0) - tl.cumsum(count, 0)
        here = (above < left) & (above + count >= left)
        lowest = lowest * 256 + tl.sum(tl.where(here, o_bin, 0), 0).to(tl.int64)
        alike = tl.sum(tl.where(here, count, 0), 0)
        left -= tl.sum(tl.where(here, above, 0), 0)

    written, passed = tl.zeros([], tl.int32), tl.zeros([], tl.int32)
    for first in tl.range(begin, end, BN):
        row = first + o_n
        score = tl.load(p_own + row, mask=row < end, other=0.0)
        order = ordered(score, (row == begin) & FIRST) + 2147483648
        equal = ((row < end) & (order == lowest)).to(tl.int32)
        late = (equal > 0) & (passed + tl.cumsum(equal, 0) > alike - left)
        taken = late | ((row < end) & (order > lowest))
        slot = written + tl.cumsum(taken.to(tl.int32), 0) - 1
        p_slot = p_slots + row.to(tl.int64) * heads + i_head
        tl.store(p_slot, tl.where(taken, slot, -1), mask=row < end)
        written += tl.sum(taken.to(tl.int32), 0)
        passed += tl.sum(equal, 0)
