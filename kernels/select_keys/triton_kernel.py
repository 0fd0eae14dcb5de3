"""Scores of blocks by their keys, and the union of the heads' lists, in Triton.

Names: i_ index, p_ pointer, o_ offset, m_ mask, s_ stride.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_parts import LOG2E, product, row_tile


@triton.jit
def key_rows(i_key, position, p_pages, s_page, s_token, max_pages, PAGE: tl.constexpr):
    """(offsets, mask) of the keys that a row at `position` sees."""
    m_page = (i_key <= position) & (i_key // PAGE < max_pages)
    page = tl.load(p_pages + i_key // PAGE, mask=m_page, other=-1).to(tl.int64)
    return page * s_page + i_key % PAGE * s_token, page >= 0


@triton.jit
def head_scores(
    p_row, s_q_head, p_keys, i_head, m_g, m_n, scale,
    D: tl.constexpr, BD: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Scores [heads, keys] of one row; p_keys: [keys], their first channels."""
    o_d = tl.arange(0, BD)
    p_q = p_row + i_head[:, None] * s_q_head + o_d[None, :]
    q = tl.load(p_q, mask=m_g[:, None] & (o_d < D)[None, :], other=0.0)
    m_k = (o_d < D)[:, None] & m_n[None, :]
    return product(q, tl.load(p_keys[None, :] + o_d[:, None], mask=m_k, other=0.0), UPCAST) * scale


@triton.jit
def score_heads(
    p_q, p_k, p_table, p_cu, p_positions, p_scores,
    s_q_row, s_q_head, s_page, s_head, s_token, s_table,
    max_pages, sequences, heads, o_first, blocks, scale,
    D: tl.constexpr, BD: tl.constexpr, GROUP: tl.constexpr, BG: tl.constexpr, SP: tl.constexpr,
    BLOCK: tl.constexpr, PAGE: tl.constexpr, BN: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """For one row and KV head: the score of the best key of each block, for each query head. A
    program takes BN keys, of one block or several, or a block of more in several turns.
    """
    SPAN: tl.constexpr = BLOCK if BLOCK < BN else BN  # keys of a block in a turn
    i_kv = tl.program_id(1)
    i_seq, i_row, _ = row_tile(o_first + tl.program_id(0), p_cu, sequences, 1, SP)
    position = tl.load(p_positions + i_row).to(tl.int32)
    i_block = tl.program_id(2) * (BN // SPAN) + tl.arange(0, BN // SPAN)
    first = tl.program_id(2) * (BN // SPAN) * BLOCK
    if first > position:
        return
    p_pages = p_table + i_seq.to(tl.int64) * s_table
    p_row = p_q + i_row.to(tl.int64) * s_q_row
    p_to = p_scores + tl.program_id(0).to(tl.int64) * heads * blocks
    for i_group in tl.range(0, GROUP, BG):
        o_g = i_group + tl.arange(0, BG)
        i_head = i_kv * GROUP + o_g
        m_g = o_g < GROUP
        best = tl.full([BG, BN // SPAN], float("-inf"), tl.float32)
        for turn in tl.range(0, BLOCK // SPAN):
            i_key = first + turn * BN + tl.arange(0, BN)
            o_key, m_n = key_rows(i_key, position, p_pages, s_page, s_token, max_pages, PAGE)
            s = head_scores(
                p_row, s_q_head, p_k + o_key + i_kv * s_head, i_head, m_g, m_n, scale, D, BD, UPCAST
            )
            s = tl.where(m_n[None, :] & (s == s), s, float("-inf"))
            best = tl.maximum(best, tl.max(tl.reshape(s, [BG, BN // SPAN, SPAN]), 2))
        m_to = m_g[:, None] & (i_block < blocks)[None, :]
        tl.store(p_to + i_head[:, None] * blocks + i_block[None, :], best, mask=m_to)


@triton.jit
def score_mass(
    p_q, p_k, p_table, p_cu, p_positions, p_lse, p_scores,
    s_q_row, s_q_head, s_page, s_head, s_token, s_table, s_lse,
    max_pages, sequences, kv_heads, o_first, blocks, scale,
    D: tl.constexpr, BD: tl.constexpr, GROUP: tl.constexpr, BG: tl.constexpr, SP: tl.constexpr,
    BLOCK: tl.constexpr, PAGE: tl.constexpr, BN: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """For one row: the greatest probability of a key of each block, summed over the query heads.
    Keys and turns as in `score_heads`.
    """
    SPAN: tl.constexpr = BLOCK if BLOCK < BN else BN
    i_seq, i_row, _ = row_tile(o_first + tl.program_id(0), p_cu, sequences, 1, SP)
    position = tl.load(p_positions + i_row).to(tl.int32)
    i_block = tl.program_id(1) * (BN // SPAN) + tl.arange(0, BN // SPAN)
    first = tl.program_id(1) * (BN // SPAN) * BLOCK
    if first > position:
        return
    p_pages = p_table + i_seq.to(tl.int64) * s_table
    p_row = p_q + i_row.to(tl.int64) * s_q_row
    best = tl.full([BN // SPAN], float("-inf"), tl.float32)
    for turn in tl.range(0, BLOCK // SPAN):
        i_key = first + turn * BN + tl.arange(0, BN)
        o_key, m_n = key_rows(i_key, position, p_pages, s_page, s_token, max_pages, PAGE)
        mass = tl.zeros([BN], tl.float32)
        for i_kv in tl.range(0, kv_heads):
            p_keys = p_k + o_key + i_kv * s_head
            for i_group in tl.range(0, GROUP, BG):
                o_g = i_group + tl.arange(0, BG)
                i_head = i_kv * GROUP + o_g
                m_g = o_g < GROUP
                s = head_scores(p_row, s_q_head, p_keys, i_head, m_g, m_n, scale, D, BD, UPCAST)
                lse = tl.load(p_lse + i_row.to(tl.int64) * s_lse + i_head, mask=m_g, other=0.0)
                share = tl.exp2((s - lse[:, None]) * LOG2E)
                mass += tl.sum(tl.where(m_g[:, None], share, 0.0), 0)
        mass = tl.where(m_n & (mass == mass), mass, float("-inf"))
        best = tl.maximum(best, tl.max(tl.reshape(mass, [BN // SPAN, SPAN]), 1))
    p_to = p_scores + tl.program_id(0).to(tl.int64) * blocks + i_block
    tl.store(p_to, best, mask=i_block < blocks)


@triton.jit
def union_ranks(
    p_scores, p_ids, p_positions, p_ranks, heads, blocks, listed, forced_first, forced_recent,
    BLOCK: tl.constexpr, WIDTH: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Every block of one head's list to its place among all heads' ones: minus the first of (rank
    in a list, head), from one on. Blocks that are always taken have no rank.
    """
    i_row, i_head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    own = (tl.load(p_positions + i_row) // BLOCK).to(tl.int32)
    p_list = p_ids + (i_row * heads + i_head) * listed
    p_row = p_scores + (i_row * heads + i_head) * blocks
    o_w = tl.arange(0, WIDTH)
    block = tl.load(p_list + o_w, mask=o_w < listed, other=-1)
    m_w = (block >= forced_first) & (block <= own - forced_recent)
    score = tl.load(p_row + block, mask=m_w, other=float("-inf"))
    rank = tl.zeros([WIDTH], tl.int32)
    for first in tl.range(0, listed, BN):
        o_n = first + tl.arange(0, BN)
        other = tl.load(p_list + o_n, mask=o_n < listed, other=-1)
        m_n = (other >= forced_first) & (other <= own - forced_recent)
        theirs = tl.load(p_row + other, mask=m_n, other=float("-inf"))
        equal = (theirs[None, :] == score[:, None]) & (other[None, :] > block[:, None])
        before = m_n[None, :] & ((theirs[None, :] > score[:, None]) | equal)
        rank += tl.sum(before.to(tl.int32), 1)
    place = (rank * heads + i_head + 1).to(tl.float32)
    tl.atomic_max(p_ranks + i_row * blocks + block, -place, mask=m_w)
