"""Key bounds, and what they allow a row to score, in Triton.

Names: i_ index, p_ pointer, o_ offset, m_ mask, s_ stride.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_parts import product, row_tile


@triton.jit
def extreme_rows(
    p_pages, p_bounds, p_members, p_begin, p_home, s_page, s_head, members, kv_heads,
    D: tl.constexpr, BD: tl.constexpr, BLOCK: tl.constexpr, PAGE: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """The least and the greatest of a block's BLOCK keys of one head, channel by channel; NaN where
    one of them is.
    """
    i_block, i_kv = tl.program_id(0).to(tl.int64), tl.program_id(1)
    begin = tl.load(p_begin + i_block).to(tl.int32)
    o_d, o_n = tl.arange(0, BD), tl.arange(0, BN)
    least = tl.full([BD], float("inf"), tl.float32)
    most = tl.full([BD], float("-inf"), tl.float32)
    lost = tl.zeros([BD], tl.int32)
    for first in tl.range(0, BLOCK, BN):
        m_n = first + o_n < BLOCK
        token = begin + first + o_n
        page = tl.load(p_members + i_block * members + token // PAGE, mask=m_n, other=-1)
        p_token = p_pages + page.to(tl.int64) * s_page + i_kv * s_head + token % PAGE * D
        m_k = (m_n & (page >= 0))[:, None] & (o_d < D)[None, :]
        k = tl.load(p_token[:, None] + o_d[None, :], mask=m_k, other=0.0).to(tl.float32)
        least = tl.minimum(least, tl.min(tl.where(m_k, k, float("inf")), 0))
        most = tl.maximum(most, tl.max(tl.where(m_k, k, float("-inf")), 0))
        lost = tl.maximum(lost, tl.max((k != k).to(tl.int32), 0))
    home = tl.load(p_home + i_block)
    m_d = (o_d < D) & (home >= 0)
    p_to = p_bounds + (home * kv_heads + i_kv) * (2 * D) + o_d
    least, most = tl.where(lost > 0, float("nan"), least), tl.where(lost > 0, float("nan"), most)
    tl.store(p_to, least.to(p_bounds.dtype.element_ty), mask=m_d)
    tl.store(p_to + D, most.to(p_bounds.dtype.element_ty), mask=m_d)


@triton.jit
def bound_blocks(
    p_q, p_bounds, p_table, p_cu, p_positions, p_scores,
    s_q_row, s_q_head, s_page, s_slot, s_head, s_end, s_table,
    max_pages, sequences, kv_heads, o_first, blocks,
    D: tl.constexpr, BD: tl.constexpr, GROUP: tl.constexpr, BG: tl.constexpr, SP: tl.constexpr,
    BLOCK: tl.constexpr, PAGE: tl.constexpr, SLOTS: tl.constexpr, BN: tl.constexpr,
    SUM: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Bounds of BN blocks for one row and the GROUP heads of one KV head, BG at a time, reduced to
    one number for each block: their sum, or the greatest. NaN where the block has no page.
    """
    i_kv = tl.program_id(1)
    i_seq, i_row, _ = row_tile(o_first + tl.program_id(0), p_cu, sequences, 1, SP)
    own = (tl.load(p_positions + i_row) // BLOCK).to(tl.int32)
    first = tl.program_id(2) * BN
    if first >= own:  # the row's own block is not ranked, and none behind it
        return
    o_d, o_n = tl.arange(0, BD), tl.arange(0, BN)
    i_block = first + o_n
    last = (i_block + 1) * BLOCK - 1
    m_page = (i_block < own) & (last // PAGE < max_pages)
    p_page = p_table + i_seq.to(tl.int64) * s_table + last // PAGE
    page = tl.load(p_page, mask=m_page, other=-1).to(tl.int64)
    slot = last % PAGE // BLOCK if SLOTS > 1 else last * 0
    p_least = p_bounds + page * s_page + slot * s_slot + i_kv * s_head
    m_n = page >= 0
    m_k = (o_d < D)[:, None] & m_n[None, :]
    least = tl.load(p_least[None, :] + o_d[:, None], mask=m_k, other=0.0)
    most = tl.load((p_least + s_end)[None, :] + o_d[:, None], mask=m_k, other=0.0)
    score = tl.full([BN], 0.0 if SUM else float("-inf"), tl.float32)
    lost = tl.zeros([BN], tl.int32)
    for i_group in tl.range(0, GROUP, BG):
        o_g = i_group + tl.arange(0, BG)
        m_g = o_g < GROUP
        p_row = p_q + i_row.to(tl.int64) * s_q_row + (i_kv * GROUP + o_g)[:, None] * s_q_head
        q = tl.load(p_row + o_d[None, :], mask=m_g[:, None] & (o_d < D)[None, :], other=0.0)
        wide = q.to(tl.float32)  # NaN is neither below nor above
        above = tl.where(wide < 0.0, 0.0, wide).to(q.dtype)
        below = tl.where(wide > 0.0, 0.0, wide).to(q.dtype)
        s = product(above, most, UPCAST) + product(below, least, UPCAST)
        if SUM:
            score += tl.sum(tl.where(m_g[:, None], s, 0.0), 0)
        else:
            score = tl.maximum(score, tl.max(tl.where(m_g[:, None], s, float("-inf")), 0))
            lost = tl.maximum(lost, tl.max((m_g[:, None] & (s != s)).to(tl.int32), 0))
    score = tl.where(m_n & (lost == 0), score, float("nan"))
    p_to = p_scores + (tl.program_id(0).to(tl.int64) * kv_heads + i_kv) * blocks + i_block
    tl.store(p_to, score, mask=(i_block < own) & (i_block < blocks))
