"""Joining the parts of a row's keys in Triton; names as in `triton_kernel.py`."""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_parts import LN2, LOG2E
from .kernel_parts import with_sink


@triton.jit(do_not_specialize=["splits"])
def join_splits(
    part, part_lse, out, lse, sink_logits, cu_rows, splits,
    HEADS: tl.constexpr, V_DIM: tl.constexpr, V_PAD: tl.constexpr,
    SINKS: tl.constexpr, BY_ROW: tl.constexpr,
):  # fmt: skip
    """The result of a (row, head) from those of its splits, as many at a time as are 4096 numbers:
    loads must not wait for one another. A split's place in the sums is its number, and a split
    without keys changes no bit; it may not have been written, and is not read.
    """
    CHUNK: tl.constexpr = 4096 // V_PAD if V_PAD < 4096 else 1
    i_part, i_head = tl.program_id(0), tl.program_id(1)
    i_row = i_part
    if not BY_ROW:
        i_row = tl.load(cu_rows + i_part)
        if tl.load(cu_rows + i_part + 1) - i_row != 1:
            return
    o_v = tl.arange(0, V_PAD)
    o_part = (i_part.to(tl.int64) * HEADS + i_head) * splits
    o_split = tl.arange(0, CHUNK)
    b_top = tl.full((CHUNK,), -float("inf"), tl.float32)
    for i in tl.range(0, splits, CHUNK):
        p_lse = part_lse + o_part + i + o_split
        b_top = tl.maximum(b_top, tl.load(p_lse, mask=i + o_split < splits, other=-float("inf")))
    top = tl.max(b_top, 0)
    base = tl.where(top == -float("inf"), 0.0, top)
    total = 0.0
    b_acc = tl.zeros((V_PAD,), tl.float32)
    for i in tl.range(0, splits, CHUNK):
        p_lse = part_lse + o_part + i + o_split
        b_lse = tl.load(p_lse, mask=i + o_split < splits, other=-float("inf"))
        b_weight = tl.exp2((b_lse - base) * LOG2E)
        p_part = part + (o_part + i + o_split)[:, None] * V_DIM + o_v[None, :]
        m_part = (b_lse > -float("inf"))[:, None] & (o_v < V_DIM)[None, :]
        b_part = tl.load(p_part, mask=m_part, other=0.0)
        b_acc += tl.sum(b_part * b_weight[:, None], 0)
        total += tl.sum(b_weight, 0)
    b_acc = tl.where(total == 0.0, 0.0, b_acc / total)
    all_lse = base + tl.log2(total) * LN2
    if SINKS:
        b_rows, b_lse = with_sink(
            b_acc[None, :], tl.full((1,), 0.0, tl.float32) + all_lse, tl.load(sink_logits + i_head)
        )
        b_acc = tl.reshape(b_rows, (V_PAD,))
        all_lse = tl.max(b_lse, 0)
    o_out = i_row.to(tl.int64) * HEADS + i_head
    tl.store(out + o_out * V_DIM + o_v, b_acc.to(out.dtype.element_ty), mask=o_v < V_DIM)
    tl.store(lse + o_out, all_lse)
