"""Layers of experts in Triton: the products of choices (row, expert), and a row's sum over them.

A program takes some outputs of one expert for a tile of choices that all name it. Weights are the
left side of its products, see `rule.sizes`. Names: i_ index, b_ block of numbers, p_ pointer,
o_ offset, m_ mask, s_ stride.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_parts import row_tile
from ..triton_rowwise import sigmoid


@triton.jit
def choices_of(
    i_tile, p_order, p_bounds, p_chosen, choices, experts, BM: tl.constexpr, EP: tl.constexpr,
    SORTED: tl.constexpr,
):  # fmt: skip
    """(expert, choices [BM], which of them there are) of a tile. SORTED: of choices in the order of
    their experts, those of expert e from bounds[e] to bounds[e + 1]; else tile i is choice i.
    """
    o_m = tl.arange(0, BM)
    if SORTED:
        i_expert, first, end = row_tile(i_tile, p_bounds, experts, BM, EP)
        m_m = first + o_m < end
        i_choice = tl.load(p_order + first + o_m, mask=m_m, other=0)
    else:
        i_expert = tl.load(p_chosen + i_tile)
        m_m = (o_m == 0) & (i_tile < choices)
        i_choice = tl.where(m_m, i_tile, 0).to(tl.int64)
    return tl.minimum(tl.maximum(i_expert, 0), experts - 1).to(tl.int64), i_choice, m_m


@triton.jit
def over_inputs(
    p_weight, p_x, m_n, m_m, inputs, BN: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """fp32 [BN, BM]: rows of a weight times rows of x, which begin at p_weight [BN], p_x [BM]."""
    b_out = tl.zeros((BN, BM), tl.float32)
    o_k = tl.arange(0, BK)
    for begin in range(0, inputs, BK):
        m_k = begin + o_k < inputs
        b_weight = tl.load(
            p_weight[:, None] + (begin + o_k)[None, :], mask=m_n[:, None] & m_k[None, :], other=0.0
        )
        b_x = tl.load(
            p_x[None, :] + (begin + o_k)[:, None], mask=m_k[:, None] & m_m[None, :], other=0.0
        )
        if UPCAST:  # the interpreter multiplies the bits of bf16
            b_weight, b_x = b_weight.to(tl.float32), b_x.to(tl.float32)
        b_out = tl.dot(b_weight, b_x, b_out, input_precision="tf32x3")
    return b_out


@triton.jit
def expert_units(
    p_x, p_weight, p_order, p_bounds, p_chosen, p_units, s_x, choices, experts, per_row, hidden,
    inner, alpha, limit,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, EP: tl.constexpr, SORTED: tl.constexpr,
    CLAMP: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """BN / 2 activated channels of a tile's choices, to p_units [choices, inner]. One product has
    their gates as its first half and their values as its second. CLAMP: swiglu, else silu.
    """
    half: tl.constexpr = BN // 2
    i_expert, i_choice, m_m = choices_of(
        tl.program_id(1), p_order, p_bounds, p_chosen, choices, experts, BM, EP, SORTED
    )
    if tl.sum(m_m.to(tl.int32), 0) == 0:
        return
    o_n = tl.arange(0, BN)
    i_n = tl.program_id(0) * half + o_n % half
    i_out = i_expert * (2 * inner) + o_n // half * inner + i_n
    b_both = over_inputs(
        p_weight + i_out * hidden, p_x + i_choice // per_row * s_x, i_n < inner, m_m, hidden,
        BN, BM, BK, UPCAST,
    )  # fmt: skip
    b_gate, b_value = tl.split(tl.permute(tl.reshape(b_both, (2, half, BM)), (1, 2, 0)))
    if CLAMP:
        b_gate = tl.where(b_gate > limit, limit, b_gate)  # NaN stays
        b_value = tl.where(b_value > limit, limit, tl.where(b_value < -limit, -limit, b_value))
        b_unit = b_gate * sigmoid(b_gate * alpha) * (b_value + 1.0)
    else:
        b_unit = b_gate * sigmoid(b_gate) * b_value
    i_unit = tl.program_id(0) * half + tl.arange(0, half)
    p_to = p_units + (i_choice * inner)[None, :] + i_unit[:, None]
    m_to = (i_unit < inner)[:, None] & m_m[None, :]
    tl.store(p_to, b_unit.to(p_units.dtype.element_ty), mask=m_to)


@triton.jit
def expert_parts(
    p_units, p_weight, p_order, p_bounds, p_chosen, p_parts, choices, experts, hidden, inner,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, EP: tl.constexpr, SORTED: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """BN channels of what a tile's choices say, to fp32 p_parts [choices, hidden]."""
    i_expert, i_choice, m_m = choices_of(
        tl.program_id(1), p_order, p_bounds, p_chosen, choices, experts, BM, EP, SORTED
    )
    if tl.sum(m_m.to(tl.int32), 0) == 0:
        return
    i_n = tl.program_id(0) * BN + tl.arange(0, BN)
    p_row = p_weight + (i_expert * hidden + i_n) * inner
    b_part = over_inputs(
        p_row, p_units + i_choice * inner, i_n < hidden, m_m, inner, BN, BM, BK, UPCAST
    )
    p_to = p_parts + (i_choice * hidden)[None, :] + i_n[:, None]
    tl.store(p_to, b_part, mask=(i_n < hidden)[:, None] & m_m[None, :])


@triton.jit
def expert_sums(
    p_parts, p_chosen, p_shares, p_out, per_row, hidden, KP: tl.constexpr, BN: tl.constexpr
):
    """A run of a row's sum over its experts, in ascending order (of equal ones, by their place)."""
    i_row = tl.program_id(0).to(tl.int64)
    o_n = tl.program_id(1) * BN + tl.arange(0, BN)
    m_n = o_n < hidden
    o_j = tl.arange(0, KP)
    m_j = o_j < per_row
    number = tl.load(p_chosen + i_row * per_row + o_j, mask=m_j, other=0)
    share = tl.load(p_shares + i_row * per_row + o_j, mask=m_j, other=0.0)
    key = tl.where(m_j, number * KP + o_j, 2**62)
    b_sum = tl.zeros((BN,), tl.float32)
    for _ in range(per_row):
        least = tl.min(key, 0)
        i_part = i_row * per_row + least % KP
        b_part = tl.load(p_parts + i_part * hidden + o_n, mask=m_n, other=0.0)
        b_sum += b_part * tl.sum(tl.where(key == least, share, 0.0), 0)
        key = tl.where(key == least, 2**62, key)
    tl.store(p_out + i_row * hidden + o_n, b_sum, mask=m_n)
