"""Scores and the best blocks in one Triton kernel: no score is ever written.

Names: i_ index, p_ pointer, o_ offset, m_ mask, s_ stride.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_parts import LEAST, NO_BLOCK, block_of, keep_best, product, rank_key, row_tile


@triton.jit
def select_rows(
    p_q,
    p_means,
    p_table,
    p_cu,
    p_positions,
    p_ids,
    s_q_row,
    s_q_head,
    s_page,
    s_slot,
    s_head,
    s_table,
    max_pages,
    sequences,
    heads,
    topk,
    D: tl.constexpr,
    BD: tl.constexpr,
    GROUP: tl.constexpr,
    BG: tl.constexpr,
    BT: tl.constexpr,
    SP: tl.constexpr,
    BLOCK: tl.constexpr,
    PAGE: tl.constexpr,
    SLOTS: tl.constexpr,
    BN: tl.constexpr,
    WIDTH: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Lists of BT rows and the GROUP heads (padded to BG) of one KV head; WIDTH > topk."""
    i_kv = tl.program_id(1)
    i_seq, begin, end = row_tile(tl.program_id(0), p_cu, sequences, BT, SP)
    if begin >= end:
        return
    o_m = tl.arange(0, BT * BG)
    i_row, i_head = begin + o_m // BG, i_kv * GROUP + o_m % BG
    m_m = (i_row < end) & (o_m % BG < GROUP)
    position = tl.load(p_positions + i_row, mask=m_m, other=0).to(tl.int32)
    own = position // BLOCK
    o_d, o_n = tl.arange(0, BD), tl.arange(0, BN)
    o_row = i_row.to(tl.int64)
    p_rows = p_q + (o_row * s_q_row + i_head * s_q_head)[:, None]
    q = tl.load(p_rows + o_d[None, :], mask=m_m[:, None] & (o_d < D)[None, :], other=0.0)
    best = tl.full([BT * BG, WIDTH], LEAST, tl.int64)
    p_pages = p_table + i_seq.to(tl.int64) * s_table
    for first in tl.range(0, tl.max(own, 0), BN):
        i_block = first + o_n
        last = (i_block + 1) * BLOCK - 1
        m_page = last // PAGE < max_pages
        page = tl.load(p_pages + last // PAGE, mask=m_page, other=-1).to(tl.int64)
        slot = last % PAGE // BLOCK if SLOTS > 1 else last * 0
        p_block = p_means + page * s_page + slot * s_slot + i_kv * s_head
        m_n = page >= 0
        m_k = (o_d < D)[:, None] & m_n[None, :]
        s = product(q, tl.load(p_block[None, :] + o_d[:, None], mask=m_k, other=0.0), UPCAST)
        # Neither NaN nor minus infinity is greater.
        fit = (i_block[None, :] < own[:, None]) & m_n[None, :] & (s > float("-inf"))
        best = keep_best(best, tl.where(fit, rank_key(s, i_block[None, :]), LEAST), WIDTH)
    o_w = tl.arange(0, WIDTH)
    ids = tl.where(o_w[None, :] < topk, block_of(best), NO_BLOCK)
    ids = tl.where(o_w[None, :] == topk, own[:, None], ids)
    ids = tl.sort(ids, dim=1)
    p_to = p_ids + ((o_row * heads + i_head) * (topk + 1))[:, None] + o_w[None, :]
    tl.store(p_to, tl.where(ids == NO_BLOCK, -1, ids), mask=m_m[:, None] & (o_w <= topk)[None, :])
