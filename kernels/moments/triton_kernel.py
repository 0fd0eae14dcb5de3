"""Moments of keys by blocks in Triton.

Names: i_ index, p_ pointer, o_ offset, m_ mask, s_ stride.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def keys_at(
    first, begin, end, o_c, m_c, p_k, p_pages, s_page, max_pages,
    D: tl.constexpr, PAGE: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """(float32 [BN, channels] of the keys from `first` on, 0 for those outside begin .. end - 1;
    which are inside).
    """
    token = first + tl.arange(0, BN)
    m_n = (token >= begin) & (token < end)
    page = tl.load(p_pages + token // PAGE, mask=m_n & (token // PAGE < max_pages), other=-1)
    p_token = p_k + page.to(tl.int64) * s_page + token % PAGE * D
    m_k = (m_n & (page >= 0))[:, None] & m_c[None, :]
    return tl.load(p_token[:, None] + o_c[None, :], mask=m_k, other=0.0).to(tl.float32), m_n


@triton.jit
def own_moments(
    oldest, begin, end, o_r, m_r, p_k, p_pages, s_page, max_pages,
    D: tl.constexpr, BD: tl.constexpr, BR: tl.constexpr, PAGE: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """(mean [BD] of keys begin .. end - 1; their variances [1, BD] (BR 0), or the rows o_r of their
    covariance [BR, BD]; the mean [BR] of channels o_r, or of all). Keys are added in runs from
    `oldest` on, a block's first.
    """
    o_d = tl.arange(0, BD)
    m_d = o_d < D
    count = tl.maximum(end - begin, 1).to(tl.float32)
    total = tl.zeros([BD], tl.float32)
    for first in tl.range(oldest, end, BN):
        k, m_n = keys_at(first, begin, end, o_d, m_d, p_k, p_pages, s_page, max_pages, D, PAGE, BN)
        total += tl.sum(k, 0)
    mean = total / count
    if BR == 0:
        second = tl.zeros([1, BD], tl.float32)
        part = mean
        for first in tl.range(oldest, end, BN):
            k, m_n = keys_at(
                first, begin, end, o_d, m_d, p_k, p_pages, s_page, max_pages, D, PAGE, BN
            )
            gap = tl.where(m_n[:, None], k - mean[None, :], 0.0)
            second += tl.sum(gap * gap, 0)[None, :]
    else:
        second = tl.zeros([BR, BD], tl.float32)
        part = tl.sum(tl.where(o_r[:, None] == o_d[None, :], mean[None, :], 0.0), 1)
        for first in tl.range(oldest, end, BN):
            k, m_n = keys_at(
                first, begin, end, o_d, m_d, p_k, p_pages, s_page, max_pages, D, PAGE, BN
            )
            r, _ = keys_at(
                first, begin, end, o_r, m_r, p_k, p_pages, s_page, max_pages, D, PAGE, BN
            )
            gap = tl.where(m_n[:, None], k - mean[None, :], 0.0)
            rows = tl.where(m_n[:, None], r - part[None, :], 0.0)
            second += tl.dot(tl.trans(rows), gap, input_precision="ieee")
    return mean, second / count, part


@triton.jit
def write_moments(
    p_k, p_moments, p_table, p_first, p_last, s_page, s_head, s_table, max_pages, sinks, kv_heads,
    chains,
    D: tl.constexpr, BD: tl.constexpr, BLOCK: tl.constexpr, PAGE: tl.constexpr,
    SLOTS: tl.constexpr, SPREAD: tl.constexpr, ROWS: tl.constexpr, BR: tl.constexpr,
    JOINS: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """The entries of every chains-th block of a sequence, of one head: their mean, and behind it
    ROWS variances (BR 0: of one block's keys) or BR of the ROWS rows of a covariance.

    JOINS: keys so far, not of the block alone: an entry builds on that of SPREAD blocks before,
    which the program, where it wrote that one itself, has in registers.
    """
    slices: tl.constexpr = (ROWS + BR - 1) // BR if BR > 0 else 1
    i_seq, i_chain = tl.program_id(0).to(tl.int64), tl.program_id(1)
    i_kv, i_slice = tl.program_id(2) // slices, tl.program_id(2) % slices
    begin_block = tl.load(p_first + i_seq).to(tl.int32) + i_chain
    end_block = tl.load(p_last + i_seq).to(tl.int32)
    p_pages = p_table + i_seq * s_table
    o_d = tl.arange(0, BD)
    m_d = o_d < D
    o_row = i_slice * BR + tl.arange(0, BR if BR > 0 else 1)
    m_row = o_row < ROWS
    mean = tl.zeros([BD], tl.float32)
    second = tl.zeros([BR if BR > 0 else 1, BD], tl.float32)
    for block in tl.range(begin_block, end_block, chains):
        oldest = tl.maximum(block - SPREAD + 1, 0) * BLOCK
        end = (block + 1) * BLOCK
        begin = tl.minimum(tl.maximum(oldest, sinks), end)
        o_r = block % SPREAD * ROWS + o_row
        m_r = m_row & (o_r < D)
        own, spread, part = own_moments(
            oldest, begin, end, o_r, m_r, p_k + i_kv * s_head, p_pages, s_page, max_pages,
            D, BD, BR, PAGE, BN,
        )  # fmt: skip
        before = tl.maximum(oldest - sinks, 0).to(tl.float32)
        if JOINS:
            if (block < begin_block + SPREAD) & (before > 0):
                last = (block - SPREAD + 1) * BLOCK - 1
                page = tl.load(p_pages + last // PAGE).to(tl.int64)
                slot = last % PAGE // BLOCK if SLOTS > 1 else 0
                p_old = p_moments + ((page * SLOTS + slot) * kv_heads + i_kv) * (1 + ROWS) * D
                mean = tl.load(p_old + o_d, mask=m_d & (page >= 0), other=float("nan"))
                m_old = m_row[:, None] & m_d[None, :] & (page >= 0)
                p_row = p_old + (1 + o_row)[:, None] * D + o_d[None, :]
                second = tl.load(p_row, mask=m_old, other=float("nan"))
            # Moments of `before` keys and of others, put together (Chan et al. 1979).
            share = (end - begin).to(tl.float32) / tl.maximum(before + (end - begin), 1.0)
            gap = own - mean
            gaps = gap[None, :]
            if BR > 0:
                known = tl.sum(tl.where(o_r[:, None] == o_d[None, :], mean[None, :], 0.0), 1)
                gaps = (part - known)[:, None]
            product = gaps * gap[None, :]
            joined = second + (spread - second) * share + product * share * (1.0 - share)
            own = tl.where(before > 0, mean + gap * share, own)
            spread = tl.where(before > 0, joined, spread)
        mean = tl.where(end > begin, own, 0.0)
        second = tl.where((end > begin) & (m_r | (BR == 0))[:, None], spread, 0.0)
        page = tl.load(p_pages + (end - 1) // PAGE).to(tl.int64)
        slot = (end - 1) % PAGE // BLOCK if SLOTS > 1 else 0
        p_to = p_moments + ((page * SLOTS + slot) * kv_heads + i_kv) * (1 + ROWS) * D
        tl.store(p_to + o_d, mean, mask=m_d & (page >= 0) & (i_slice == 0))
        p_row = p_to + (1 + o_row)[:, None] * D + o_d[None, :]
        tl.store(p_row, second, mask=m_row[:, None] & m_d[None, :] & (page >= 0))
