"""The gated delta rule in Triton, one token at a time.

Names: i_ index, b_ block of numbers, p_ pointer, o_ offset, m_ mask, s_ stride.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def unit(x, eps):
    """A row divided by its length, in fp32."""
    wide = x.to(tl.float32)
    return wide / tl.sqrt(tl.sum(wide * wide, 0) + eps)


@triton.jit
def inputs_of(
    i_row, i_head, p_q, p_k, p_v, p_decay, p_beta, s_q, s_k, s_v, heads, group, o_d, o_v, m_d, m_v,
    D: tl.constexpr, DV: tl.constexpr,
):  # fmt: skip
    """What a row brings: query, key, value, decay, beta."""
    o_key, i_gate = i_head // group * D + o_d, i_row * heads + i_head
    return (
        tl.load(p_q + i_row * s_q + o_key, mask=m_d, other=0.0),
        tl.load(p_k + i_row * s_k + o_key, mask=m_d, other=0.0),
        tl.load(p_v + i_row * s_v + i_head * DV + o_v, mask=m_v, other=0.0),
        tl.load(p_decay + i_gate),
        tl.load(p_beta + i_gate),
    )


@triton.jit
def walk_states(
    p_q, p_k, p_v, p_decay, p_beta, p_states, p_out, p_cu, p_rows, p_load, p_store,
    s_q, s_k, s_v, count, heads, group, eps, scale,
    D: tl.constexpr, BD: tl.constexpr, DV: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """A head of one sequence, BV channels of its values: its state stays in registers from the
    first of its rows to the last. count: of states. What the next row brings is asked for before a
    row is computed, and which row comes after it.
    """
    i_seq, i_head = tl.program_id(1), tl.program_id(2)
    o_d, o_v = tl.arange(0, BD), tl.program_id(0) * BV + tl.arange(0, BV)
    m_d, m_v = o_d < D, o_v < DV
    o_state = o_d[:, None] * DV + o_v[None, :]
    m_state = m_d[:, None] & m_v[None, :]
    i_load = tl.load(p_load + i_seq)
    p_from = p_states + (i_load * heads + i_head) * (D * DV)
    known = (i_load >= 0) & (i_load < count)
    b_state = tl.load(p_from + o_state, mask=m_state & known, other=0.0)
    begin, end = tl.load(p_cu + i_seq), tl.load(p_cu + i_seq + 1)
    if begin < end:
        i_row = tl.load(p_rows + begin)
        i_next = tl.load(p_rows + tl.minimum(begin + 1, end - 1))
        q, k, v, decay, beta = inputs_of(
            i_row, i_head, p_q, p_k, p_v, p_decay, p_beta, s_q, s_k, s_v, heads, group,
            o_d, o_v, m_d, m_v, D, DV,
        )  # fmt: skip
        for i in range(begin, end):
            next_q, next_k, next_v, next_decay, next_beta = inputs_of(
                i_next, i_head, p_q, p_k, p_v, p_decay, p_beta, s_q, s_k, s_v, heads, group,
                o_d, o_v, m_d, m_v, D, DV,
            )  # fmt: skip
            i_after = tl.load(p_rows + tl.minimum(i + 2, end - 1))
            i_store = tl.load(p_store + i)
            b_q, b_k = unit(q, eps) * scale, unit(k, eps)
            b_state = b_state * decay
            b_change = (v.to(tl.float32) - tl.sum(b_state * b_k[:, None], 0)) * beta
            b_state = b_state + b_k[:, None] * b_change[None, :]
            b_out = tl.sum(b_state * b_q[:, None], 0)
            p_to = p_out + (i_row * heads + i_head) * DV + o_v
            tl.store(p_to, b_out.to(p_out.dtype.element_ty), mask=m_v)
            kept = (i_store >= 0) & (i_store < count)
            p_keep = p_states + (i_store * heads + i_head) * (D * DV)
            tl.store(p_keep + o_state, b_state, mask=m_state & kept)
            i_row, i_next = i_next, i_after
            q, k, v, decay, beta = next_q, next_k, next_v, next_decay, next_beta
