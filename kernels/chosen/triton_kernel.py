"""Projections of chosen rows in Triton: a program whose rows were not chosen reads no weights.

Names: i_ index, p_ pointer, o_ offset, m_ mask, s_ stride, b_ block of numbers.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_parts import product


@triton.jit
def weighted(
    b_sum, p_x, p_w, s_x, width, o_t, m_t, o_n, m_n,
    BK: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """b_sum plus rows o_t of x times rows o_n of w, over the first `width` of their numbers."""
    o_k = tl.arange(0, BK)
    for start in tl.range(0, width, BK):
        m_k = start + o_k < width
        b_x = tl.load(
            p_x + o_t.to(tl.int64)[:, None] * s_x + (start + o_k)[None, :],
            mask=m_t[:, None] & m_k[None, :],
            other=0.0,
        )
        b_w = tl.load(
            p_w + o_n.to(tl.int64)[None, :] * width + (start + o_k)[:, None],
            mask=m_n[None, :] & m_k[:, None],
            other=0.0,
        )
        b_sum += product(b_x, b_w, UPCAST)
    return b_sum


@triton.jit(do_not_specialize=["rows"])
def project_rows(
    p_x, p_w, p_chosen, p_out, rows, s_x, inputs, outputs,
    BT: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """BT rows and BN outputs of one head."""
    i_head = tl.program_id(2).to(tl.int64)
    o_t = tl.program_id(1) * BT + tl.arange(0, BT)
    o_n = tl.program_id(0) * BN + tl.arange(0, BN)
    m_n = o_n < outputs
    chosen = tl.load(p_chosen + i_head * rows + o_t, mask=o_t < rows, other=0) != 0
    b_sum = tl.zeros([BT, BN], tl.float32)
    if tl.max(chosen.to(tl.int32), 0) > 0:
        p_head = p_w + i_head * inputs * outputs
        b_sum = weighted(b_sum, p_x, p_head, s_x, inputs, o_t, chosen, o_n, m_n, BK, UPCAST)
    p_row = p_out + (i_head * rows + o_t)[:, None] * outputs + o_n[None, :]
    b_out = tl.where(chosen[:, None], b_sum, 0.0).to(p_out.dtype.element_ty)
    tl.store(p_row, b_out, mask=(o_t < rows)[:, None] & m_n[None, :])


@triton.jit(do_not_specialize=["rows", "heads"])
def add_rows(
    p_total, p_y, p_w, p_chosen, rows, heads, inputs, outputs,
    BT: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """BT rows and BN outputs of the sum, head after head."""
    o_t = tl.program_id(1) * BT + tl.arange(0, BT)
    o_n = tl.program_id(0) * BN + tl.arange(0, BN)
    m_n = o_n < outputs
    m_out = (o_t < rows)[:, None] & m_n[None, :]
    p_row = p_total + o_t.to(tl.int64)[:, None] * outputs + o_n[None, :]
    b_total = tl.load(p_row, mask=m_out, other=0.0)
    for i_head in tl.range(0, heads):
        own = tl.zeros([], tl.int64) + i_head
        chosen = tl.load(p_chosen + own * rows + o_t, mask=o_t < rows, other=0) != 0
        if tl.max(chosen.to(tl.int32), 0) > 0:
            b_sum = weighted(
                tl.zeros([BT, BN], tl.float32), p_y + own * rows * inputs,
                p_w + own * inputs * outputs, inputs, inputs, o_t, chosen, o_n, m_n, BK, UPCAST,
            )  # fmt: skip
            b_total += tl.where(chosen[:, None], b_sum, 0.0)
    tl.store(p_row, b_total, mask=m_out)
