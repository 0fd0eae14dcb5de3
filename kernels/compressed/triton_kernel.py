"""Attention over entries, and the blocks that weigh most, in one Triton kernel.

The first loop is flash attention over the entries. The second computes the scores again, now that
the denominator is known, turns them into probabilities, adds these up over the heads of an owner
and over the entries that overlap a block, and keeps the best blocks: neither scores nor weights are
ever written. It goes by blocks: turn `tap` takes, for every block of a tile, the tap-th of the
entries that overlap it, so that a block's weight is a sum in a fixed order whatever the spans.

Names: i_ index, p_ pointer, o_ offset, m_ mask, s_ stride.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_parts import (
    LEAST,
    LN2,
    NO_BLOCK,
    block_of,
    entry_of,
    keep_best,
    peak_and_shrink,
    product,
    rank_key,
    row_tile,
    scores_of,
)


@triton.jit
def weights_of(
    i_block, zero, complete, m_m, most, q, q_rest, p_own, p_pages, s_page, s_slot, max_pages, scale,
    D: tl.constexpr, BD: tl.constexpr, REST: tl.constexpr,
    BT: tl.constexpr, BG: tl.constexpr, BB: tl.constexpr, LENGTH: tl.constexpr,
    STRIDE: tl.constexpr, BLOCK: tl.constexpr, PAGE: tl.constexpr, SLOTS: tl.constexpr,
    HEAVIEST: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Weights [BT, BB] of blocks, of the probabilities of the entries that overlap them.

    zero: [rows] the denominators, as exponents of 2; complete: entries that a row sees.
    """
    weight = tl.zeros([BT, BB], tl.float32)
    for tap in range((BLOCK + LENGTH) // STRIDE - 1):
        # Where the entry begins, from the block's first token on.
        ahead = tap * STRIDE - (LENGTH - STRIDE)
        i_entry = i_block * (BLOCK // STRIDE) + tap - (LENGTH // STRIDE - 1)
        m_e = (i_entry >= 0) & (i_entry < most)
        o_entry, m_n = entry_of(
            i_entry, p_pages, s_page, s_slot, max_pages, m_e, LENGTH, STRIDE, PAGE, SLOTS
        )
        s = scores_of(q, q_rest, p_own + o_entry, m_n, scale, D, BD, REST, UPCAST)
        seen = (i_entry[None, :] < complete[:, None]) & m_n[None, :] & m_m[:, None]
        share = tl.where(seen, tl.exp2(s - zero[:, None]), 0.0)
        mass = tl.sum(tl.reshape(share, [BT, BG, BB]), 1)
        if HEAVIEST:
            weight = tl.maximum(weight, mass, propagate_nan=tl.PropagateNan.ALL)
        else:
            shared = tl.minimum(ahead + LENGTH, BLOCK) - tl.maximum(ahead, 0)
            weight += mass * (shared // STRIDE).to(tl.float32)
    return weight


@triton.jit
def write_list(p_list, best, listed, m_t, WIDTH: tl.constexpr):
    """Stores the best blocks of rows, ascending; p_list: [rows, 1], where their lists begin."""
    o_w = tl.arange(0, WIDTH)
    ids = tl.where(o_w[None, :] < listed, block_of(best), NO_BLOCK)
    ids = tl.sort(ids, dim=1)
    m_list = m_t[:, None] & (o_w < listed)[None, :]
    tl.store(p_list + o_w[None, :], tl.where(ids == NO_BLOCK, -1, ids), mask=m_list)


@triton.jit
def compressed_rows(
    p_q, p_entries, p_table, p_cu, p_positions, p_out, p_lse, p_ids,
    s_q_row, s_q_head, s_page, s_slot, s_head, s_table,
    max_pages, sequences, heads, owners, listed, forced_first, forced_recent, every, scale, o_value,
    D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr, REST: tl.constexpr, BDV: tl.constexpr,
    GROUP: tl.constexpr, BG: tl.constexpr, BT: tl.constexpr, SP: tl.constexpr,
    LENGTH: tl.constexpr, STRIDE: tl.constexpr, BLOCK: tl.constexpr, PAGE: tl.constexpr,
    SLOTS: tl.constexpr, BN: tl.constexpr, BB: tl.constexpr, WIDTH: tl.constexpr,
    HEAVIEST: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """BT rows and the heads of one owner, padded to BG. DV 0: no values; WIDTH 0: no list."""
    i_kv = tl.program_id(1)
    i_seq, begin, end = row_tile(tl.program_id(0), p_cu, sequences, BT, SP)
    if begin >= end:
        return
    o_m = tl.arange(0, BT * BG)
    i_row, i_head = begin + o_m // BG, i_kv * GROUP + o_m % BG
    m_m = (i_row < end) & (o_m % BG < GROUP)
    position = tl.load(p_positions + i_row, mask=m_m, other=-1).to(tl.int32)
    # Entries complete at a row; a negative quotient would be rounded up.
    complete = tl.where(position + 1 >= LENGTH, (position + 1 - LENGTH) // STRIDE + 1, 0)
    o_row = i_row.to(tl.int64)
    o_d, o_n = tl.arange(0, BD), tl.arange(0, BN)
    p_rows = p_q + (o_row * s_q_row + i_head * s_q_head)[:, None]
    q = tl.load(p_rows + o_d[None, :], mask=m_m[:, None] & (o_d < D)[None, :], other=0.0)
    q_rest = q
    if REST > 0:
        o_r = BD + tl.arange(0, REST)
        q_rest = tl.load(p_rows + o_r[None, :], mask=m_m[:, None] & (o_r < D)[None, :], other=0.0)
    p_pages = p_table + i_seq.to(tl.int64) * s_table
    p_own = p_entries + i_kv * s_head

    top = tl.full([BT * BG], float("-inf"), tl.float32)
    total = tl.zeros([BT * BG], tl.float32)
    acc = tl.zeros([BT * BG, BDV], tl.float32)
    most = tl.max(complete, 0)
    for first in tl.range(0, most, BN):
        i_entry = first + o_n
        o_entry, m_n = entry_of(
            i_entry, p_pages, s_page, s_slot, max_pages, i_entry < most, LENGTH, STRIDE, PAGE, SLOTS
        )
        s = scores_of(q, q_rest, p_own + o_entry, m_n, scale, D, BD, REST, UPCAST)
        s = tl.where((i_entry[None, :] < complete[:, None]) & m_n[None, :], s, float("-inf"))
        top, safe, shrink = peak_and_shrink(top, tl.max(s, 1))
        p = tl.exp2(s - safe[:, None])
        total = total * shrink + tl.sum(p, 1)
        if DV > 0:
            o_dv = tl.arange(0, BDV)
            p_v = (p_own + o_entry + o_value)[:, None] + o_dv[None, :]
            v = tl.load(p_v, mask=m_n[:, None] & (o_dv < DV)[None, :], other=0.0)
            acc = acc * shrink[:, None] + product(p.to(v.dtype), v, UPCAST)
    empty = total == 0.0
    whole = tl.where(empty, 1.0, total)
    lse = tl.where(empty, float("-inf"), top + tl.log2(whole))
    o_out = o_row * heads + i_head
    tl.store(p_lse + o_out, lse * LN2, mask=m_m)
    if DV > 0:
        o_dv = tl.arange(0, BDV)
        p_to = p_out + o_out[:, None] * DV + o_dv[None, :]
        acc = (acc / whole[:, None]).to(p_out.dtype.element_ty)
        tl.store(p_to, acc, mask=m_m[:, None] & (o_dv < DV)[None, :])

    if WIDTH > 0:
        o_t, o_b = tl.arange(0, BT), tl.arange(0, BB)
        i_token = begin + o_t
        m_t = i_token < end
        at = tl.load(p_positions + i_token, mask=m_t, other=-1).to(tl.int32)
        own = tl.where(at >= 0, at // BLOCK, -1)
        chooses = (at >= 0) & (at % every == 0)
        zero = tl.where(empty, 0.0, lse)
        best = tl.full([BT, WIDTH], LEAST, tl.int64)
        for first in tl.range(0, tl.max(own, 0) + 1, BB):
            i_block = first + o_b
            weight = weights_of(
                i_block, zero, complete, m_m, most, q, q_rest, p_own, p_pages, s_page, s_slot,
                max_pages, scale,
                D, BD, REST, BT, BG, BB, LENGTH, STRIDE, BLOCK, PAGE, SLOTS, HEAVIEST, UPCAST,
            )  # fmt: skip
            forced = (i_block < forced_first)[None, :] | (
                i_block[None, :] > own[:, None] - forced_recent
            )
            weight = tl.where(forced, float("inf"), weight)
            fit = (i_block[None, :] <= own[:, None]) & chooses[:, None] & (weight == weight)
            keys = tl.where(fit, rank_key(weight, i_block[None, :]), LEAST)
            best = keep_best(best, keys, WIDTH)
        p_list = p_ids + ((i_token.to(tl.int64) * owners + i_kv) * listed)[:, None]
        write_list(p_list, best, listed, m_t, WIDTH)
