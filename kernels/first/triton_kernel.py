"""The first key's weight, scaled after attention, in Triton.

Names: i_ index, p_ pointer, o_ offset, m_ mask, s_ stride.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_parts import LN2, capped


@triton.jit
def scale_heads(
    p_q, p_out, p_lse, p_k, p_v, p_cu, p_gains, p_seen, p_result, p_mass,
    s_q_row, s_q_head, rows, sequences, heads, kv_heads, scale, softcap,
    D: tl.constexpr, BD: tl.constexpr, DV: tl.constexpr, BDV: tl.constexpr, SP: tl.constexpr,
    BR: tl.constexpr, CAP: tl.constexpr, SEEN: tl.constexpr,
):  # fmt: skip
    """BR heads of rows. SEEN: only those that p_seen marks had the first key among theirs."""
    i = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    i_row, i_head = i // heads, i % heads
    m_i = i_row < rows
    o_s = tl.arange(0, SP)
    ends = tl.load(p_cu + 1 + o_s, mask=o_s < sequences, other=2**31 - 1)
    i_seq = tl.sum((ends[None, :] <= i_row[:, None]).to(tl.int64), 1)
    i_first = tl.minimum(i_seq, sequences - 1) * kv_heads + i_head // (heads // kv_heads)
    o_d, o_dv = tl.arange(0, BD), tl.arange(0, BDV)
    m_d, m_v = m_i[:, None] & (o_d < D)[None, :], m_i[:, None] & (o_dv < DV)[None, :]
    p_row = p_q + (i_row * s_q_row + i_head * s_q_head)[:, None]
    q = tl.load(p_row + o_d[None, :], mask=m_d, other=0.0).to(tl.float32)
    k = tl.load(p_k + i_first[:, None] * D + o_d[None, :], mask=m_d, other=0.0).to(tl.float32)
    score = tl.sum(q * k, 1) * scale
    if CAP:
        score = capped(score, softcap) * LN2
    lse = tl.load(p_lse + i, mask=m_i, other=0.0)
    gain = tl.load(p_gains + i_head, mask=m_i, other=1.0)
    added = (gain - 1.0) * tl.exp(score - lse)  # by how much the sum of all weights changes
    idle = gain == 1.0
    if SEEN:
        idle = idle | (tl.load(p_seen + i, mask=m_i, other=0) == 0)
    out = tl.load(p_out + i[:, None] * DV + o_dv[None, :], mask=m_v, other=0.0)
    v = tl.load(p_v + i_first[:, None] * DV + o_dv[None, :], mask=m_v, other=0.0).to(tl.float32)
    scaled = (out + added[:, None] * v) / (1.0 + added)[:, None]
    out = tl.where(idle[:, None], out, scaled)
    p_to = p_result + i[:, None] * DV + o_dv[None, :]
    tl.store(p_to, out.to(p_result.dtype.element_ty), mask=m_v)
    tl.store(p_mass + i, tl.where(idle, lse, lse + tl.log(1.0 + added)), mask=m_i)
