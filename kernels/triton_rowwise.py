"""Triton kernels of the ops that treat every row by itself: norms, rotary embedding, merges, gates.

All of them read and write each number once, so memory sets their pace: a program takes one row, or
one head of it, whole. fp32 inside, rounded once. Names: i_ index, p_ pointer, o_ offset, m_ mask,
s_ stride.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def norm_row(
    p_x,
    p_weight,
    p_residual,
    p_out,
    s_x,
    s_residual,
    n,
    eps,
    offset,
    BN: tl.constexpr,
    ADD: tl.constexpr,
):
    """RMS norm of one row; ADD: of the row plus its residual, which is updated."""
    i_row = tl.program_id(0).to(tl.int64)
    o_n = tl.arange(0, BN)
    m_n = o_n < n
    x = tl.load(p_x + i_row * s_x + o_n, mask=m_n, other=0.0)
    if ADD:
        p_sum = p_residual + i_row * s_residual + o_n
        x = (tl.load(p_sum, mask=m_n, other=0.0).to(tl.float32) + x.to(tl.float32)).to(x.dtype)
        tl.store(p_sum, x, mask=m_n)
    wide = x.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(wide * wide, 0) / n + eps)
    weight = tl.load(p_weight + o_n, mask=m_n, other=0.0).to(tl.float32)
    tl.store(p_out + i_row * n + o_n, (wide * scale * (offset + weight)).to(x.dtype), mask=m_n)


@triton.jit
def rotate_row(p_x, p_cos, p_sin, s_row, s_head, heads, half, BH: tl.constexpr, BR: tl.constexpr):
    """Rotates all heads of one row in place."""
    i_row = tl.program_id(0).to(tl.int64)
    o_h, o_r = tl.arange(0, BH), tl.arange(0, BR)
    m_r = o_r < half
    cos = tl.load(p_cos + i_row * half + o_r, mask=m_r, other=0.0)[None, :]
    sin = tl.load(p_sin + i_row * half + o_r, mask=m_r, other=0.0)[None, :]
    m_x = (o_h < heads)[:, None] & m_r[None, :]
    p_one = p_x + i_row * s_row + o_h[:, None] * s_head + o_r[None, :]
    one, two = tl.load(p_one, mask=m_x, other=0.0), tl.load(p_one + half, mask=m_x, other=0.0)
    first, second = one.to(tl.float32), two.to(tl.float32)
    tl.store(p_one, (first * cos - second * sin).to(one.dtype), mask=m_x)
    tl.store(p_one + half, (second * cos + first * sin).to(one.dtype), mask=m_x)


@triton.jit
def merged(out_a, lse_a, out_b, lse_b):
    """(out, lse) of rows [n, dv] in fp32 with lse [n]: an empty side leaves the other as it is."""
    top = tl.maximum(lse_a, lse_b, propagate_nan=tl.PropagateNan.ALL)
    safe = tl.where(top == float("-inf"), 0.0, top)
    weight_a, weight_b = tl.exp(lse_a - safe), tl.exp(lse_b - safe)
    total = weight_a + weight_b
    divisor = tl.where(total == 0.0, 1.0, total)
    # Chosen, not weighed by 0: whatever an empty side holds, NaN too, stays out.
    part_a = tl.where((lse_a == float("-inf"))[:, None], 0.0, out_a * (weight_a / divisor)[:, None])
    part_b = tl.where((lse_b == float("-inf"))[:, None], 0.0, out_b * (weight_b / divisor)[:, None])
    return part_a + part_b, tl.where(top == float("-inf"), top, safe + tl.log(divisor))


@triton.jit
def merge_rows(
    p_out_a, p_lse_a, p_out_b, p_lse_b, p_out, p_lse, rows, DV: tl.constexpr, BDV: tl.constexpr,
    BR: tl.constexpr,
):  # fmt: skip
    """The merge of BR heads of rows."""
    i_row = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    o_dv = tl.arange(0, BDV)
    m_row = i_row < rows
    m_out = m_row[:, None] & (o_dv < DV)[None, :]
    o_out = i_row[:, None] * DV + o_dv[None, :]
    lse_a = tl.load(p_lse_a + i_row, mask=m_row, other=float("-inf"))
    lse_b = tl.load(p_lse_b + i_row, mask=m_row, other=float("-inf"))
    out_a = tl.load(p_out_a + o_out, mask=m_out, other=0.0).to(tl.float32)
    out_b = tl.load(p_out_b + o_out, mask=m_out, other=0.0).to(tl.float32)
    out, lse = merged(out_a, lse_a, out_b, lse_b)
    tl.store(p_lse + i_row, lse, mask=m_row)
    tl.store(p_out + o_out, out.to(p_out.dtype.element_ty), mask=m_out)


@triton.jit
def correct_row(
    p_base, p_lse, p_table, p_weights, p_source, p_out, exact, heads, DV: tl.constexpr,
    BDV: tl.constexpr, BH: tl.constexpr, MERGE: tl.constexpr,
):  # fmt: skip
    """One row of a base result with what row `source` of the table has: merged, or added."""
    i_row = tl.program_id(0).to(tl.int64)
    i_source = tl.load(p_source + i_row)
    o_h, o_dv = tl.arange(0, BH), tl.arange(0, BDV)
    m_h = o_h < heads
    m_out = m_h[:, None] & (o_dv < DV)[None, :]
    o_out = (i_row * heads + o_h)[:, None] * DV + o_dv[None, :]
    o_table = (i_source * heads + o_h)[:, None] * DV + o_dv[None, :]
    there = (i_source >= 0) & (i_source < exact)
    base = tl.load(p_base + o_out, mask=m_out, other=0.0).to(tl.float32)
    found = tl.load(p_table + o_table, mask=m_out & there, other=0.0).to(tl.float32)
    if MERGE:
        lse = tl.load(p_lse + i_row * heads + o_h, mask=m_h, other=float("-inf"))
        p_weight = p_weights + i_source * heads + o_h
        weight = tl.load(p_weight, mask=m_h & there, other=float("-inf"))
        base, _ = merged(base, lse, found, weight)
    else:
        base = base + found
    tl.store(p_out + o_out, base.to(p_out.dtype.element_ty), mask=m_out)


@triton.jit
def gate_rows(
    p_a, p_b, p_c, p_d, p_gates, p_out, s_gate, heads, PARTS: tl.constexpr, DV: tl.constexpr,
    BDV: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """The sum of up to four parts under gates, in their order, for all heads of one row."""
    i_row = tl.program_id(0).to(tl.int64)
    o_h, o_dv = tl.arange(0, BH), tl.arange(0, BDV)
    m_h = o_h < heads
    m_out = m_h[:, None] & (o_dv < DV)[None, :]
    i_head = i_row * heads + o_h
    o_out = i_head[:, None] * DV + o_dv[None, :]
    p_gate = p_gates + i_head * s_gate
    total = tl.load(p_a + o_out, mask=m_out, other=0.0).to(tl.float32)
    total = total * tl.load(p_gate, mask=m_h, other=0.0)[:, None]
    if PARTS > 1:
        part = tl.load(p_b + o_out, mask=m_out, other=0.0).to(tl.float32)
        total += part * tl.load(p_gate + 1, mask=m_h, other=0.0)[:, None]
    if PARTS > 2:
        part = tl.load(p_c + o_out, mask=m_out, other=0.0).to(tl.float32)
        total += part * tl.load(p_gate + 2, mask=m_h, other=0.0)[:, None]
    if PARTS > 3:
        part = tl.load(p_d + o_out, mask=m_out, other=0.0).to(tl.float32)
        total += part * tl.load(p_gate + 3, mask=m_h, other=0.0)[:, None]
    tl.store(p_out + o_out, total.to(p_out.dtype.element_ty), mask=m_out)


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)); 0 and 1 at the ends."""
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def gated_unit(p_x, p_out, s_x, n, alpha, limit, BN: tl.constexpr, CLAMP: tl.constexpr):
    """silu(g) * u of one run of a row [g, u]; CLAMP: swiglu, of clamped g and u."""
    i_row = tl.program_id(0).to(tl.int64)
    o_n = tl.program_id(1) * BN + tl.arange(0, BN)
    m_n = o_n < n
    p_gate = p_x + i_row * s_x + o_n
    gate = tl.load(p_gate, mask=m_n, other=0.0).to(tl.float32)
    up = tl.load(p_gate + n, mask=m_n, other=0.0).to(tl.float32)
    if CLAMP:
        gate = tl.where(gate > limit, limit, gate)  # NaN stays
        up = tl.where(up > limit, limit, tl.where(up < -limit, -limit, up))
        out = gate * sigmoid(gate * alpha) * (up + 1.0)
    else:
        out = gate * sigmoid(gate) * up
    tl.store(p_out + i_row * n + o_n, out.to(p_out.dtype.element_ty), mask=m_n)


@triton.jit
def gated_output(p_x, p_gate, p_out, s_x, s_gate, n, per_gate, BN: tl.constexpr):
    """x times the sigmoid of its gate, each for `per_gate` channels, of one run of a row."""
    i_row = tl.program_id(0).to(tl.int64)
    o_n = tl.program_id(1) * BN + tl.arange(0, BN)
    m_n = o_n < n
    x = tl.load(p_x + i_row * s_x + o_n, mask=m_n, other=0.0).to(tl.float32)
    p_share = p_gate + i_row * s_gate + o_n // per_gate
    share = sigmoid(tl.load(p_share, mask=m_n, other=0.0).to(tl.float32))
    tl.store(p_out + i_row * n + o_n, (x * share).to(p_out.dtype.element_ty), mask=m_n)
