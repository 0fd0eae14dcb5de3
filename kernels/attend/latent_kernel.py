"""Triton attention of single rows over latents, whose first channels are the values; names as in
`triton_kernel.py`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_parts import LOG2E
from .kernel_parts import product, tanh, write_rows
from .key_tiles import FAR, list_of, seen_tiles
from .triton_kernel import key_start


@triton.jit
def sequence_of_row(cu_rows, sequences, i_row):
    """The sequence of a row. In decode that of the same number: two loads show it, and spare a
    search whose loads wait for one another.
    """
    i_same = tl.minimum(i_row, sequences - 1)
    same = (tl.load(cu_rows + i_same) == i_row) & (tl.load(cu_rows + i_same + 1) == i_row + 1)
    low, high = tl.where(same, i_same, 0), tl.where(same, i_same, sequences - 1)
    while low < high:
        middle = (low + high) // 2
        if tl.load(cu_rows + middle + 1) <= i_row:
            low = middle + 1
        else:
            high = middle
    return low


@triton.jit
def listed_keys(p_ids, columns, most, BLOCK: tl.constexpr):
    """How many keys below `most` an ascending list padded with -1 holds."""
    o_id = tl.arange(0, 64)
    count, last = 0, 0
    for i in tl.range(0, columns, 64):
        b_id = tl.load(p_ids + i + o_id, mask=i + o_id < columns, other=-1)
        m_held = (b_id >= 0) & (b_id < tl.cdiv(most, BLOCK))
        count += tl.sum(m_held.to(tl.int32))
        last = tl.maximum(last, tl.max(tl.where(m_held, b_id, 0)))
    return tl.where(count == 0, 0, (count - 1) * BLOCK + tl.minimum(most - last * BLOCK, BLOCK))


@triton.jit
def place_of(
    i, p_ids, p_table, first, firsts, second, listed, most,
    BLOCK_N: tl.constexpr, BLOCK: tl.constexpr, PAGE: tl.constexpr, LISTS: tl.constexpr,
    SPREAD: tl.constexpr,
):  # fmt: skip
    """Positions and pages of the i-th tile of keys: where it begins and the page it lies in, or if
    it is SPREAD over short blocks or pages, those of every key.
    """
    if SPREAD:
        o_n = tl.arange(0, BLOCK_N)
        if LISTS:
            o_at = i * BLOCK_N + o_n
            b_id = tl.load(p_ids + o_at // BLOCK, mask=o_at < listed, other=0)
            at = tl.where(o_at < listed, b_id * BLOCK + o_at % BLOCK, FAR)
        else:
            at = key_start(i, p_ids, first, firsts, second, BLOCK_N, BLOCK, LISTS) + o_n
        page = tl.load(p_table + at // PAGE, mask=at < most, other=-1).to(tl.int64)
    else:
        at = key_start(i, p_ids, first, firsts, second, BLOCK_N, BLOCK, LISTS)
        page = tl.load(p_table + at // PAGE).to(tl.int64)
    return at, page


@triton.jit
def over_latents(
    b_acc, b_sum, b_max, b_q, b_rest,
    begin, end, first, firsts, second, listed, p_ids, p_table, k, pages, stride_kp,
    least, most, position, window, sinks, scale, softcap,
    BLOCK_N: tl.constexpr, BLOCK: tl.constexpr, PAGE: tl.constexpr,
    DIM: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr,
    LISTS: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, SPREAD: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """Tiles begin .. end of latents into the running maximum, sum and output. A tile is read once:
    its first MAIN channels are multiplied as keys and then as values. Where the next tile lies is
    carried in loop variables, so that Triton overlaps the tiles.
    """
    o_n, o_main = tl.arange(0, BLOCK_N), tl.arange(0, MAIN)
    if begin < end:
        at, page = place_of(
            begin, p_ids, p_table, first, firsts, second, listed, most,
            BLOCK_N, BLOCK, PAGE, LISTS, SPREAD,
        )  # fmt: skip
        for i in tl.range(begin, end):
            next_at, next_page = place_of(
                tl.minimum(i + 1, end - 1), p_ids, p_table, first, firsts, second, listed, most,
                BLOCK_N, BLOCK, PAGE, LISTS, SPREAD,
            )  # fmt: skip
            o_key = at
            if not SPREAD:
                o_key = at + o_n
            m_n = (page >= 0) & (page < pages) & (o_key >= least) & (o_key < most)
            if WINDOW:
                m_n = m_n & ((position - o_key < window) | (o_key < sinks))
            p_k = k + page * stride_kp
            if SPREAD:
                p_k = (p_k + at % PAGE * DIM)[:, None]
            else:
                p_k = p_k + (at % PAGE + o_n)[:, None] * DIM
            # What the row does not see may be memory of a former owner, even NaN: zeros instead.
            b_k = tl.load(
                p_k + o_main[None, :], mask=m_n[:, None] & (o_main < DIM)[None, :], other=0.0
            )
            b_s = product(b_q, tl.trans(b_k), UPCAST)
            if REST:
                o_rest = MAIN + tl.arange(0, REST)
                b_k_rest = tl.load(
                    p_k + o_rest[None, :], mask=m_n[:, None] & (o_rest < DIM)[None, :], other=0.0
                )
                b_s += product(b_rest, tl.trans(b_k_rest), UPCAST)
            if SOFTCAP:
                b_s = tanh(b_s * (scale / softcap)) * (softcap * LOG2E)
            else:
                b_s = b_s * (scale * LOG2E)
            b_s = tl.where(m_n[None, :], b_s, -float("inf"))
            b_top = tl.maximum(b_max, tl.max(b_s, 1))
            b_base = tl.where(b_top == -float("inf"), 0.0, b_top)
            b_p = tl.exp2(b_s - b_base[:, None])
            b_keep = tl.exp2(b_max - b_base)
            b_sum = b_sum * b_keep + tl.sum(b_p, 1)
            b_max = b_top
            b_acc = b_acc * b_keep[:, None] + product(b_p.to(b_k.dtype), b_k, UPCAST)
            at = next_at
            page = next_page
    return b_acc, b_sum, b_max


# Numbers that change from step to step: no variant of a kernel for each kind of number.
COUNTS = [
    "sequences", "pages", "table_width", "table_stride", "columns", "window", "sinks", "scale",
    "softcap", "least_rows", "most_rows", "splits",
]  # fmt: skip


@triton.jit(do_not_specialize=COUNTS)
def attend_latents(
    q, k, out, lse, table, cu_rows, positions, lo, hi, sink_logits, ids, list_of_row,
    sequences, pages, table_width, table_stride, columns,
    stride_qt, stride_qh, stride_kp, stride_kh,
    window, sinks, scale, softcap, least_rows, most_rows, splits,
    HEADS: tl.constexpr, GROUP: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK: tl.constexpr, PAGE: tl.constexpr,
    DIM: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr, V_DIM: tl.constexpr,
    LO: tl.constexpr, HI: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
    SINKS: tl.constexpr, LISTS: tl.constexpr, LIST_OF_ROW: tl.constexpr, SPREAD: tl.constexpr,
    LEAST: tl.constexpr, MOST: tl.constexpr, BY_ROW: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """BLOCK_M heads of a latent's group in one row, over one split of the row's keys; see `attend`
    for the tensors.

    Serves sequences of least_rows .. most_rows rows alone. BY_ROW: a program for every row, or else
    for the one row of every sequence. LEAST: tiles of a split, more where MOST splits would not
    suffice; results go to [row or sequence, head, split] of fp32 `out` and `lse`, of splits without
    keys an lse alone. 0: all keys at once.
    """
    parts: tl.constexpr = (GROUP + BLOCK_M - 1) // BLOCK_M
    owners: tl.constexpr = HEADS // GROUP
    # Programs that read the same latents are neighbours: all but the first find them in the cache.
    i_program, i_split = tl.program_id(0), tl.program_id(1)
    i_first, i_part = i_program // (owners * parts), i_program % (owners * parts)
    i_kv = i_part // parts
    i_sequence = i_first
    if BY_ROW:
        i_sequence = sequence_of_row(cu_rows, sequences, i_first)
    i_row = tl.load(cu_rows + i_sequence)
    rows = tl.load(cu_rows + i_sequence + 1) - i_row
    if rows < least_rows or rows > most_rows:
        return
    if BY_ROW:
        i_row = i_first
    o_group = i_part % parts * BLOCK_M + tl.arange(0, BLOCK_M)
    o_head, m_head = i_kv * GROUP + tl.minimum(o_group, GROUP - 1), o_group < GROUP
    position = tl.minimum(tl.load(positions + i_row), FAR).to(tl.int32)
    least, most = 0, position + 1
    if LO:
        least = tl.maximum(tl.load(lo + i_row), 0)
    if HI:
        most = tl.load(hi + i_row)
    most = tl.minimum(most, table_width * PAGE)
    p_ids = table  # of no matter without lists
    first, firsts, second, listed = 0, 0, 0, 0
    if LISTS:
        p_ids = list_of(
            ids, list_of_row, i_row, i_kv, 0, columns, HEADS, GROUP, owners, LIST_OF_ROW
        )
        listed = listed_keys(p_ids, columns, most, BLOCK)
        end = tl.cdiv(listed, BLOCK_N)
    else:
        first, firsts, second, end = seen_tiles(
            least, most, position, window, sinks, 0, BLOCK_N, WINDOW, 0
        )
    begin = 0
    if LEAST:
        each = tl.maximum(tl.cdiv(end, MOST), LEAST)
        begin = i_split * each
        end = tl.minimum(begin + each, end)
        if begin >= end:
            o_out = (i_first.to(tl.int64) * HEADS + o_head) * splits + i_split
            tl.store(lse + o_out, tl.full((BLOCK_M,), -float("inf"), tl.float32), mask=m_head)
            return
    p_q = q + i_row.to(tl.int64) * stride_qt + o_head[:, None] * stride_qh
    o_main, o_rest = tl.arange(0, MAIN), MAIN + tl.arange(0, REST if REST else 16)
    b_q = tl.load(p_q + o_main[None, :], mask=m_head[:, None] & (o_main < DIM)[None, :], other=0.0)
    b_rest = b_q
    if REST:
        m_rest = m_head[:, None] & (o_rest < DIM)[None, :]
        b_rest = tl.load(p_q + o_rest[None, :], mask=m_rest, other=0.0)
    b_acc, b_sum, b_max = over_latents(
        tl.zeros((BLOCK_M, MAIN), tl.float32), tl.zeros((BLOCK_M,), tl.float32),
        tl.full((BLOCK_M,), -float("inf"), tl.float32), b_q, b_rest,
        begin, end, first, firsts, second, listed, p_ids,
        table + i_sequence.to(tl.int64) * table_stride, k + i_kv * stride_kh, pages, stride_kp,
        least, most, position, window, sinks, scale, softcap,
        BLOCK_N, BLOCK, PAGE, DIM, MAIN, REST, LISTS, WINDOW, SOFTCAP, SPREAD, UPCAST,
    )  # fmt: skip
    write_rows(
        out, lse, sink_logits, b_acc, b_sum, b_max, i_row, o_head, i_sequence, i_split, splits,
        m_head, HEADS, V_DIM, MAIN, SINKS, LEAST, BY_ROW,
    )  # fmt: skip
