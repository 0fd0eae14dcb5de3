"""Pieces of the Triton attention kernels; names as in `triton_kernel.py`."""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_parts import LN2, LOG2E


@triton.jit
def sequence_of(cu_rows, sequences, i_tile, BLOCK_Q: tl.constexpr):
    """The sequence of a tile: that of sequence s are numbered from cu_rows[s] // BLOCK_Q + s on."""
    low, high = 0, sequences
    while low < high:
        middle = (low + high) // 2
        if tl.load(cu_rows + middle) // BLOCK_Q + middle <= i_tile:
            low = middle + 1
        else:
            high = middle
    return low - 1


@triton.jit
def product(a, b, UPCAST: tl.constexpr):
    """a @ b in fp32; the interpreter multiplies bf16 as if it were integers, hence UPCAST."""
    if UPCAST:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    return tl.dot(a, b, input_precision="tf32x3")


@triton.jit
def tanh(x):
    """By its series where the usual form cancels."""
    square = x * x
    near = x * (1.0 - square * (1.0 / 3.0 - square * (2.0 / 15.0 - square * (17.0 / 315.0))))
    far = 1.0 - 2.0 / (tl.exp2(tl.minimum(tl.abs(x), 20.0) * (2.0 * LOG2E)) + 1.0)
    far = tl.where(x < 0.0, -far, far)
    return tl.where(square < 0.01, near, tl.where(x != x, x, far))


@triton.jit
def with_sink(b_out, b_lse, b_sink):
    """Adds a logit without a value to finished rows, in natural logarithms."""
    b_base = tl.maximum(b_lse, b_sink)
    b_base = tl.where(b_base == -float("inf"), 0.0, b_base)
    b_own = tl.exp2((b_lse - b_base) * LOG2E)
    b_all = b_own + tl.exp2((b_sink - b_base) * LOG2E)
    b_out = tl.where(b_all[:, None] == 0.0, 0.0, b_out * b_own[:, None] / b_all[:, None])
    return b_out, b_base + tl.log2(b_all) * LN2


@triton.jit
def write_rows(
    out, lse, sink_logits, b_acc, b_sum, b_max, o_row, o_head, i_sequence, i_split, splits, m_m,
    HEADS: tl.constexpr, V_DIM: tl.constexpr, V_PAD: tl.constexpr, SINKS: tl.constexpr,
    SPLIT: tl.constexpr, BY_TILE: tl.constexpr,
):  # fmt: skip
    """Divides rows by their sums and stores them: whole ones with their sinks, or split ones by row
    (BY_TILE) or sequence.
    """
    b_acc = tl.where(b_sum[:, None] == 0.0, 0.0, b_acc / b_sum[:, None])
    b_lse = (b_max + tl.log2(b_sum)) * LN2
    o_out = o_row.to(tl.int64) * HEADS + o_head
    if SPLIT:
        if not BY_TILE:
            o_out = i_sequence.to(tl.int64) * HEADS + o_head
        o_out = o_out * splits + i_split
    elif SINKS:
        b_sink = tl.load(sink_logits + o_head)
        b_acc, b_lse = with_sink(b_acc, b_lse, b_sink)
    o_v = tl.arange(0, V_PAD)
    m_out = m_m[:, None] & (o_v < V_DIM)[None, :]
    tl.store(
        out + o_out[:, None] * V_DIM + o_v[None, :], b_acc.to(out.dtype.element_ty), mask=m_out
    )
    tl.store(lse + o_out, b_lse, mask=m_m)
