"""Triton kernels of the ops that treat every row by itself: norms, rotary embedding, merges, gates.

All of them read and write each number once, so memory sets their pace: a program takes some 2048
numbers, of whole rows or whole heads. fp32 inside, rounded once. Names: i_ index, p_ pointer,
o_ offset, m_ mask, s_ stride.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def norm_rows(
    p_x,
    p_weight,
    p_residual,
    p_out,
    s_x,
    s_residual,
    rows,
    n,
    eps,
    offset,
    BR: tl.constexpr,
    BN: tl.constexpr,
    ADD: tl.constexpr,
):
    """RMS norm of BR rows; ADD: of the rows plus their residual, which is updated."""
    i_row = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    o_n = tl.arange(0, BN)
    m_n = (i_row < rows)[:, None] & (o_n < n)[None, :]
    x = tl.load(p_x + (i_row * s_x)[:, None] + o_n[None, :], mask=m_n, other=0.0)
    if ADD:
        p_sum = p_residual + (i_row * s_residual)[:, None] + o_n[None, :]
        x = (tl.load(p_sum, mask=m_n, other=0.0).to(tl.float32) + x.to(tl.float32)).to(x.dtype)
        tl.store(p_sum, x, mask=m_n)
    wide = x.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(wide * wide, 1) / n + eps)
    weight = tl.load(p_weight + o_n, mask=o_n < n, other=0.0).to(tl.float32)
    out = wide * scale[:, None] * (offset + weight)[None, :]
    tl.store(p_out + (i_row * n)[:, None] + o_n[None, :], out.to(x.dtype), mask=m_n)


@triton.jit
def rotate_heads(
    p_x, p_cos, p_sin, s_row, s_head, rows, heads, half, BR: tl.constexpr, BH: tl.constexpr
):
    """Rotates BR heads of rows in place."""
    i = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    i_row, i_head = i // heads, i % heads
    o_h = tl.arange(0, BH)
    m_x = (i_row < rows)[:, None] & (o_h < half)[None, :]
    o_angle = (i_row * half)[:, None] + o_h[None, :]
    cos = tl.load(p_cos + o_angle, mask=m_x, other=0.0)
    sin = tl.load(p_sin + o_angle, mask=m_x, other=0.0)
    p_one = p_x + (i_row * s_row + i_head * s_head)[:, None] + o_h[None, :]
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
def correct_heads(
    p_base, p_lse, p_table, p_weights, p_source, p_out, rows, exact, heads, DV: tl.constexpr,
    BDV: tl.constexpr, BR: tl.constexpr, MERGE: tl.constexpr,
):  # fmt: skip
    """BR heads of a base result with what row `source` of the table has: merged, or added."""
    i = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    m_row = i < rows
    i_source = tl.load(p_source + i // heads, mask=m_row, other=-1)
    there = (i_source >= 0) & (i_source < exact)
    i_found = i_source * heads + i % heads
    o_dv = tl.arange(0, BDV)
    m_dv = (o_dv < DV)[None, :]
    o_out = i[:, None] * DV + o_dv[None, :]
    base = tl.load(p_base + o_out, mask=m_row[:, None] & m_dv, other=0.0).to(tl.float32)
    p_found = p_table + i_found[:, None] * DV + o_dv[None, :]
    found = tl.load(p_found, mask=there[:, None] & m_dv, other=0.0).to(tl.float32)
    if MERGE:
        lse = tl.load(p_lse + i, mask=m_row, other=float("-inf"))
        weight = tl.load(p_weights + i_found, mask=there, other=float("-inf"))
        base, _ = merged(base, lse, found, weight)
    else:
        base = base + found
    tl.store(p_out + o_out, base.to(p_out.dtype.element_ty), mask=m_row[:, None] & m_dv)


@triton.jit
def gate_heads(
    p_a, p_b, p_c, p_d, p_gates, p_out, s_gate, rows, PARTS: tl.constexpr, DV: tl.constexpr,
    BDV: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """The sum of up to four parts under gates, in their order, of BR heads of rows."""
    i = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    o_dv = tl.arange(0, BDV)
    m_row = i < rows
    m_out = m_row[:, None] & (o_dv < DV)[None, :]
    o_out = i[:, None] * DV + o_dv[None, :]
    p_gate = p_gates + i * s_gate
    total = tl.load(p_a + o_out, mask=m_out, other=0.0).to(tl.float32)
    total = total * tl.load(p_gate, mask=m_row, other=0.0)[:, None]
    if PARTS > 1:
        part = tl.load(p_b + o_out, mask=m_out, other=0.0).to(tl.float32)
        total += part * tl.load(p_gate + 1, mask=m_row, other=0.0)[:, None]
    if PARTS > 2:
        part = tl.load(p_c + o_out, mask=m_out, other=0.0).to(tl.float32)
        total += part * tl.load(p_gate + 2, mask=m_row, other=0.0)[:, None]
    if PARTS > 3:
        part = tl.load(p_d + o_out, mask=m_out, other=0.0).to(tl.float32)
        total += part * tl.load(p_gate + 3, mask=m_row, other=0.0)[:, None]
    tl.store(p_out + o_out, total.to(p_out.dtype.element_ty), mask=m_out)


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)); 0 and 1 at the ends."""
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def gated_units(
    p_x, p_out, s_x, rows, n, alpha, limit, BR: tl.constexpr, BN: tl.constexpr,
    CLAMP: tl.constexpr,
):  # fmt: skip
    """silu(g) * u of a run of BR rows [g, u]; CLAMP: swiglu, of clamped g and u."""
    i_row = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    o_n = tl.program_id(1) * BN + tl.arange(0, BN)
    m_n = (i_row < rows)[:, None] & (o_n < n)[None, :]
    p_gate = p_x + (i_row * s_x)[:, None] + o_n[None, :]
    gate = tl.load(p_gate, mask=m_n, other=0.0).to(tl.float32)
    up = tl.load(p_gate + n, mask=m_n, other=0.0).to(tl.float32)
    if CLAMP:
        gate = tl.where(gate > limit, limit, gate)  # NaN stays
        up = tl.where(up > limit, limit, tl.where(up < -limit, -limit, up))
        out = gate * sigmoid(gate * alpha) * (up + 1.0)
    else:
        out = gate * sigmoid(gate) * up
    p_to = p_out + (i_row * n)[:, None] + o_n[None, :]
    tl.store(p_to, out.to(p_out.dtype.element_ty), mask=m_n)


@triton.jit
def gated_outputs(
    p_x, p_gate, p_out, s_x, s_gate, rows, n, per_gate, BR: tl.constexpr, BN: tl.constexpr
):
    """x times the sigmoid of its gate, each for `per_gate` channels, of a run of BR rows."""
    i_row = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    o_n = tl.program_id(1) * BN + tl.arange(0, BN)
    m_n = (i_row < rows)[:, None] & (o_n < n)[None, :]
    x = tl.load(p_x + (i_row * s_x)[:, None] + o_n[None, :], mask=m_n, other=0.0).to(tl.float32)
    p_share = p_gate + (i_row * s_gate)[:, None] + (o_n // per_gate)[None, :]
    share = sigmoid(tl.load(p_share, mask=m_n, other=0.0).to(tl.float32))
    p_to = p_out + (i_row * n)[:, None] + o_n[None, :]
    tl.store(p_to, (x * share).to(p_out.dtype.element_ty), mask=m_n)
