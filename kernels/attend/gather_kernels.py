"""Triton kernels of attention to selected blocks, by blocks of keys.

`gather_tiles`: a program takes one block of keys and one tile of the rows that selected it, in the
order of the block, so that full tiles reach the tensor cores however scattered a row's blocks are;
it leaves one partial result per (row, head, place in the list). `combine_rows`: a program takes a
tile of rows, attends to their own, causal blocks itself, and merges the partial results in the
order of the list. No program adds to another's result: what comes out depends on no schedule.

Exponents have base 2: `scale` holds log2(e), except under a softcap. Names: i_ index, b_ block,
p_ pointer, o_ offset, m_ mask, s_ stride.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_parts import LN2, LOG2E, capped, peak_and_shrink, product, row_tile


@triton.jit
def gather_tiles(
    p_q,
    p_k,
    p_v,
    p_table,
    p_order,
    p_group,
    p_first,
    p_count,
    p_part,
    p_lse,
    s_q_row,
    s_q_head,
    s_k_page,
    s_k_head,
    s_v_page,
    s_v_head,
    s_table,
    max_pages,
    blocks,
    owners,
    listed,
    kv_heads,
    scale,
    softcap,
    D: tl.constexpr,
    DV: tl.constexpr,
    BD: tl.constexpr,
    BDV: tl.constexpr,
    GROUP: tl.constexpr,
    BG: tl.constexpr,
    BC: tl.constexpr,
    BLOCK: tl.constexpr,
    PAGE: tl.constexpr,
    BN: tl.constexpr,
    CAP: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Partial results of one tile: BC entries of the order, each GROUP heads (padded to BG)."""
    i_tile = tl.program_id(0)
    count = tl.load(p_count + i_tile)
    if count == 0:
        return
    i_group = tl.load(p_group + i_tile)
    i_kv, i_block = i_group % kv_heads, (i_group // kv_heads) % blocks
    i_seq = i_group // kv_heads // blocks
    o_m = tl.arange(0, BC * BG)
    i_code, i_g = o_m // BG, o_m % BG
    m_m = (i_code < count) & (i_g < GROUP)
    o_order = tl.load(p_first + i_tile) + i_code
    entry = tl.load(p_order + o_order, mask=m_m, other=0).to(tl.int64)
    i_row = entry // (owners * listed)
    i_head = (entry // listed) % owners * GROUP + i_g
    o_d, o_dv, o_n = tl.arange(0, BD), tl.arange(0, BDV), tl.arange(0, BN)
    o_q = i_row * s_q_row + i_head * s_q_head
    m_d, m_dv = o_d < D, o_dv < DV
    q = tl.load(p_q + o_q[:, None] + o_d[None, :], mask=m_m[:, None] & m_d[None, :], other=0.0)

    o_k = o_n[None, :] * D + o_d[:, None]
    o_v = o_n[:, None] * DV + o_dv[None, :]
    top = tl.full([BC * BG], float("-inf"), tl.float32)
    total = tl.zeros([BC * BG], tl.float32)
    acc = tl.zeros([BC * BG, BDV], tl.float32)
    p_pages = p_table + i_seq.to(tl.int64) * s_table
    i_page = i_block * BLOCK // PAGE
    # The next page's id is carried: a load inside the loop would hold the pipeline up.
    page = tl.load(p_pages + i_page, mask=i_page < max_pages, other=-1).to(tl.int64)
    for j in tl.range(0, BLOCK, BN):
        first = i_block * BLOCK + j
        i_next = (first + BN) // PAGE
        following = tl.load(p_pages + i_next, mask=i_next < max_pages, other=-1).to(tl.int64)
        token = first % PAGE
        m_n = (o_n >= 0) & (page >= 0)
        p_kt = p_k + (page * s_k_page + i_kv * s_k_head + token * D) + o_k
        k = tl.load(p_kt, mask=m_d[:, None] & m_n[None, :], other=0.0)
        s = product(q, k, UPCAST) * scale
        if CAP:
            s = capped(s, softcap)
        s = tl.where(m_n[None, :], s, float("-inf"))
        top, safe, shrink = peak_and_shrink(top, tl.max(s, 1))
        p = tl.exp2(s - safe[:, None])
        total = total * shrink + tl.sum(p, 1)
        p_vt = p_v + (page * s_v_page + i_kv * s_v_head + token * DV) + o_v
        v = tl.load(p_vt, mask=m_n[:, None] & m_dv[None, :], other=0.0)
        acc = acc * shrink[:, None] + product(p.to(v.dtype), v, UPCAST)
        page = following
    empty = total == 0.0
    acc = acc / tl.where(empty, 1.0, total)[:, None]
    lse = tl.where(empty, float("-inf"), top + tl.log2(tl.where(empty, 1.0, total)))
    # [row, head, place in the list]
    o_part = (i_row * owners * GROUP + i_head) * listed + entry % listed
    tl.store(p_lse + o_part, lse, mask=m_m)
    p_out = p_part + o_part[:, None] * DV + o_dv[None, :]
    tl.store(p_out, acc.to(p_part.dtype.element_ty), mask=m_m[:, None] & m_dv[None, :])


@triton.jit
def join_parts(
    top, total, acc, p_list, o_part, listed, p_part, p_lse, own, m_m,
    DV: tl.constexpr, BDV: tl.constexpr,
):  # fmt: skip
    """Joins rows' partial results over the blocks of their lists that lie before their own."""
    o_dv = tl.arange(0, BDV)
    before = own * 0 - 1
    for i in range(listed):
        i_block = tl.load(p_list + i, mask=m_m, other=-1)
        m_part = m_m & (i_block >= 0) & (i_block < own) & (i_block != before)
        before = i_block
        lse = tl.load(p_lse + o_part + i, mask=m_part, other=float("-inf"))
        m_part = m_part & (lse != float("-inf"))
        p_one = p_part + (o_part + i)[:, None] * DV + o_dv[None, :]
        part = tl.load(p_one, mask=m_part[:, None] & (o_dv < DV)[None, :], other=0.0)
        top, safe, shrink = peak_and_shrink(top, lse)
        weight = tl.exp2(lse - safe)
        total = total * shrink + weight
        acc = acc * shrink[:, None] + part.to(tl.float32) * weight[:, None]
    return top, total, acc


@triton.jit
def combine_rows(
    p_q,
    p_k,
    p_v,
    p_table,
    p_cu,
    p_positions,
    p_ids,
    p_part,
    p_lse,
    p_sinks,
    p_out,
    p_out_lse,
    s_q_row,
    s_q_head,
    s_k_page,
    s_k_head,
    s_v_page,
    s_v_head,
    s_table,
    max_pages,
    sequences,
    heads,
    owners,
    listed,
    scale,
    softcap,
    D: tl.constexpr,
    DV: tl.constexpr,
    BD: tl.constexpr,
    BDV: tl.constexpr,
    GROUP: tl.constexpr,
    BG: tl.constexpr,
    BT: tl.constexpr,
    SP: tl.constexpr,
    BLOCK: tl.constexpr,
    PAGE: tl.constexpr,
    BN: tl.constexpr,
    CAP: tl.constexpr,
    SINKS: tl.constexpr,
    PER_HEAD: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Results of BT rows and the GROUP heads (padded to BG) of one KV head."""
    i_kv = tl.program_id(1)
    i_seq, begin, end = row_tile(tl.program_id(0), p_cu, sequences, BT, SP)
    if begin >= end:
        return
    o_m = tl.arange(0, BT * BG)
    i_row, i_head = begin + o_m // BG, i_kv * GROUP + o_m % BG
    m_m = (i_row < end) & (o_m % BG < GROUP)
    i_owner = i_head if PER_HEAD else i_kv + i_head * 0
    position = tl.load(p_positions + i_row, mask=m_m, other=-1).to(tl.int32)
    own = tl.where(m_m, position // BLOCK, -1)
    o_ids = (i_row.to(tl.int64) * owners + i_owner) * listed
    held = tl.zeros([BT * BG], tl.int1)
    for i in range(listed):
        held = held | (tl.load(p_ids + o_ids + i, mask=m_m, other=-1) == own)
    held = held & m_m

    o_d, o_dv, o_n = tl.arange(0, BD), tl.arange(0, BDV), tl.arange(0, BN)
    m_d, m_dv = o_d < D, o_dv < DV
    o_row = i_row.to(tl.int64)
    o_q = o_row * s_q_row + i_head * s_q_head
    q = tl.load(p_q + o_q[:, None] + o_d[None, :], mask=m_m[:, None] & m_d[None, :], other=0.0)
    o_k = o_n[None, :] * D + o_d[:, None]
    o_v = o_n[:, None] * DV + o_dv[None, :]
    top = tl.full([BT * BG], float("-inf"), tl.float32)
    total = tl.zeros([BT * BG], tl.float32)
    acc = tl.zeros([BT * BG, BDV], tl.float32)
    last = tl.max(tl.where(held, position, -1), 0)
    first = tl.min(tl.where(held, position, 2147483647), 0) // BLOCK * BLOCK
    p_pages = p_table + i_seq.to(tl.int64) * s_table
    page = tl.load(p_pages + first // PAGE, mask=last >= 0, other=-1).to(tl.int64)
    for j in tl.range(first, last + 1, BN):
        i_next = (j + BN) // PAGE
        following = tl.load(p_pages + i_next, mask=i_next < max_pages, other=-1).to(tl.int64)
        token, o_j = j % PAGE, j + o_n
        m_n = (o_j <= last) & (page >= 0)
        p_kt = p_k + (page * s_k_page + i_kv * s_k_head + token * D) + o_k
        k = tl.load(p_kt, mask=m_d[:, None] & m_n[None, :], other=0.0)
        s = product(q, k, UPCAST) * scale
        if CAP:
            s = capped(s, softcap)
        sees = (o_j[None, :] <= position[:, None]) & (o_j[None, :] // BLOCK == own[:, None])
        s = tl.where(sees & held[:, None] & m_n[None, :], s, float("-inf"))
        top, safe, shrink = peak_and_shrink(top, tl.max(s, 1))
        p = tl.exp2(s - safe[:, None])
        total = total * shrink + tl.sum(p, 1)
        p_vt = p_v + (page * s_v_page + i_kv * s_v_head + token * DV) + o_v
        v = tl.load(p_vt, mask=m_n[:, None] & m_dv[None, :], other=0.0)
        acc = acc * shrink[:, None] + product(p.to(v.dtype), v, UPCAST)
        page = following

    top, total, acc = join_parts(
        top, total, acc, p_ids + o_ids, (o_row * heads + i_head) * listed, listed,
        p_part, p_lse, own, m_m, DV, BDV,
    )  # fmt: skip
    if SINKS:
        sink = tl.load(p_sinks + i_head, mask=m_m, other=float("-inf")) * LOG2E
        top, safe, shrink = peak_and_shrink(top, sink)
        total = total * shrink + tl.exp2(sink - safe)
        acc = acc * shrink[:, None]
    empty = total == 0.0
    acc = acc / tl.where(empty, 1.0, total)[:, None]
    lse = tl.where(empty, float("-inf"), (top + tl.log2(tl.where(empty, 1.0, total))) * LN2)
    o_out = o_row * heads + i_head
    tl.store(p_out_lse + o_out, lse, mask=m_m)
    p_to = p_out + o_out[:, None] * DV + o_dv[None, :]
    tl.store(p_to, acc.to(p_out.dtype.element_ty), mask=m_m[:, None] & m_dv[None, :])
