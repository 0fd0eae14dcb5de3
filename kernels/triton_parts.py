"""What the Triton kernels of the sparse methods share: tiles of rows, products, ranking keys.

Rows of a batch are ragged. A grid of `triton_sizes.most_tiles` programs covers them: program i
finds its tile from cu_rows alone, so that no length is ever brought to the host; those left over
return at once.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Below every key of a number, and above every column of a list.
LEAST = tl.constexpr(-(2**63))
NO_BLOCK = tl.constexpr(2**31 - 1)
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def row_tile(i_tile, p_cu, sequences, BT: tl.constexpr, SP: tl.constexpr):
    """(sequence, first row, end of the sequence's rows) of tile i; the two are equal where there is
    no such tile. SP: a power of two of at least `sequences`.
    """
    o_s = tl.arange(0, SP)
    m_s = o_s < sequences
    begin = tl.load(p_cu + o_s, mask=m_s, other=0)
    end = tl.load(p_cu + o_s + 1, mask=m_s, other=0)
    count = tl.where(m_s, (end - begin + BT - 1) // BT, 0)
    before = tl.cumsum(count, 0)
    i_s = tl.sum((before <= i_tile).to(tl.int32), 0)
    here = (o_s == i_s) & m_s
    first = tl.sum(tl.where(here, begin + (i_tile - before + count) * BT, 0), 0)
    last = tl.sum(tl.where(here, end, 0), 0)
    return tl.minimum(i_s, sequences - 1), first, last


@triton.jit
def product(a, b, UPCAST: tl.constexpr):
    """a @ b in fp32. UPCAST: operands are widened first, as the interpreter needs for bf16, whose
    bit patterns it would multiply.
    """
    if UPCAST:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def entry_of(
    i_entry,
    p_pages,
    s_page,
    s_slot,
    max_pages,
    m_entry,
    LENGTH: tl.constexpr,
    STRIDE: tl.constexpr,
    PAGE: tl.constexpr,
    SLOTS: tl.constexpr,
):
    """(offsets, mask) of entries: they lie in the page of the last of their tokens."""
    last = i_entry * STRIDE + (LENGTH - 1)
    m_page = m_entry & (last // PAGE < max_pages)
    page = tl.load(p_pages + last // PAGE, mask=m_page, other=-1).to(tl.int64)
    slot = last % PAGE // STRIDE if SLOTS > 1 else last * 0
    return page * s_page + slot * s_slot, page >= 0


@triton.jit
def scores_of(
    q, q_rest, p_entry, m_n, scale, D: tl.constexpr, BD: tl.constexpr, REST: tl.constexpr, UPCAST
):
    """Scores [rows, entries] of entries whose first channel is at p_entry, in powers of two."""
    o_d = tl.arange(0, BD)
    m_k = (o_d < D)[:, None] & m_n[None, :]
    s = product(q, tl.load(p_entry[None, :] + o_d[:, None], mask=m_k, other=0.0), UPCAST)
    if REST > 0:
        o_r = BD + tl.arange(0, REST)
        m_r = (o_r < D)[:, None] & m_n[None, :]
        s += product(q_rest, tl.load(p_entry[None, :] + o_r[:, None], mask=m_r, other=0.0), UPCAST)
    return s * scale


@triton.jit
def capped(s, softcap):
    """softcap * tanh(s / softcap), times log2(e), so that it is an exponent of 2."""
    x = s / softcap
    square = x * x  # by its series where the quotient would cancel
    near = x * (1.0 - square * (1.0 / 3.0 - square * (2.0 / 15.0 - square * (17.0 / 315.0))))
    e = tl.exp2(tl.abs(x) * (-2.0 * LOG2E))
    far = (1.0 - e) / (1.0 + e)
    return tl.where(square < 0.01, near, tl.where(x < 0.0, -far, far)) * (softcap * LOG2E)


@triton.jit
def peak_and_shrink(top, new):
    """(maximum, the same with 0 for none, factor of earlier sums) of a running maximum `top` of
    exponents of 2 that a maximum of new ones joins.
    """
    peak = tl.maximum(top, new)
    safe = tl.where(peak == float("-inf"), 0.0, peak)
    return peak, safe, tl.exp2(top - safe)


@triton.jit
def rank_key(score, i_block):
    """int64 keys that order as (score, block id) do: equal scores, the later block first."""
    bits = (score + 0.0).to(tl.int32, bitcast=True)  # -0 becomes 0
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)
    return ordered * 4294967296 + i_block.to(tl.int64)


@triton.jit
def keep_best(best, keys, WIDTH: tl.constexpr):
    """The WIDTH largest of keys [rows, WIDTH], descending, and keys [rows, n]; descending."""
    new = tl.topk(keys, WIDTH, dim=1)
    # Of two descending rows, one reversed, the larger ones are the best of both.
    return tl.sort(tl.maximum(best, tl.flip(new, 1)), dim=1, descending=True)


@triton.jit
def block_of(best):
    """The block ids of keys, NO_BLOCK where there is none; the padding sorts behind every block."""
    return tl.where(best == LEAST, NO_BLOCK, (best & 0xFFFFFFFF).to(tl.int32))
