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
    """The result of a (row, head) from those of its splits, always in their order. A split without
    keys changes no bit.
    """
    i_part, i_head = tl.program_id(0), tl.program_id(1)
    i_row = i_part
    if not BY_ROW:
        i_row = tl.load(cu_rows + i_part)
        if tl.load(cu_rows + i_part + 1) - i_row != 1:
            return
    o_v = tl.arange(0, V_PAD)
    o_part = (i_part.to(tl.int64) * HEADS + i_head) * splits
    top = -float("inf")
    for i in tl.range(0, splits):
        top = tl.maximum(top, tl.load(part_lse + o_part + i), propagate_nan=tl.PropagateNan.ALL)
    base = tl.where(top == -float("inf"), 0.0, top)
    total = 0.0
    b_acc = tl.zeros((V_PAD,), tl.float32)
    for i in tl.range(0, splits):
        weight = tl.exp2((tl.load(part_lse + o_part + i) - base) * LOG2E)
        b_part = tl.load(part + (o_part + i) * V_DIM + o_v, mask=o_v < V_DIM, other=0.0)
        b_acc += tl.where(weight == 0.0, 0.0, b_part * weight)
        total += weight
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
