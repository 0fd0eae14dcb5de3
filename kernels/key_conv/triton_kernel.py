"""Convolution of keys in Triton. Names: i_ index, p_ pointer, o_ offset, m_ mask, s_ stride."""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_rowwise import sigmoid


@triton.jit
def convolve_rows(
    p_k, p_history, p_before, p_weight, p_out, s_k, rows, known, n,
    TAPS: tl.constexpr, BR: tl.constexpr, BN: tl.constexpr, RESIDUAL: tl.constexpr,
):  # fmt: skip
    """A run of the channels of BR rows; `known` rows of history."""
    i_row = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    o_n = tl.program_id(1) * BN + tl.arange(0, BN)
    m_row, m_n = i_row < rows, o_n < n
    m_own = m_row[:, None] & m_n[None, :]
    own = tl.load(p_k + (i_row * s_k)[:, None] + o_n[None, :], mask=m_own, other=0.0)
    own = own.to(tl.float32)
    total = tl.load(p_weight + o_n, mask=m_n, other=0.0).to(tl.float32)[None, :] * own
    for tap in range(1, TAPS):
        at = tl.load(p_before + i_row * (TAPS - 1) + tap - 1, mask=m_row, other=-1)
        m_here, m_past = (at >= 0) & (at < rows), (at <= -2) & (-2 - at < known)
        p_here = p_k + (tl.where(m_here, at, 0) * s_k)[:, None] + o_n[None, :]
        p_past = p_history + (tl.where(m_past, -2 - at, 0) * n)[:, None] + o_n[None, :]
        x = tl.load(p_here, mask=m_here[:, None] & m_n[None, :], other=0.0).to(tl.float32)
        y = tl.load(p_past, mask=m_past[:, None] & m_n[None, :], other=0.0).to(tl.float32)
        weight = tl.load(p_weight + tap * n + o_n, mask=m_n, other=0.0).to(tl.float32)
        total += weight[None, :] * tl.where(m_here[:, None], x, y)
    out = total * sigmoid(total)
    if RESIDUAL:
        out = own + out
    p_to = p_out + (i_row * n)[:, None] + o_n[None, :]
    tl.store(p_to, out.to(p_out.dtype.element_ty), mask=m_own)
