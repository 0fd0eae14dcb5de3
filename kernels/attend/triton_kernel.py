"""Paged attention in Triton: one kernel for prefill tiles, decode rows, windows and block lists.

A program computes one tile: query rows of one sequence times heads of one KV head's group, over
tiles of keys that begin at multiples of BLOCK_N and lie in one page. Keys are taken in ascending
order, and a tile of keys that a row does not see changes no bit of it: so a row's result does not
depend on the rows beside it. Names: i_ index, o_ offsets, p_ pointer, b_ block of numbers, m_ mask.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_parts import LOG2E
from .kernel_parts import product, sequence_of, tanh, write_rows
from .key_tiles import FAR, list_of, listed_tiles, seen_tiles, whole_tiles


@triton.jit
def key_start(
    i, p_ids, first, firsts, second, BLOCK_N: tl.constexpr, BLOCK: tl.constexpr, LISTS: tl.constexpr
):
    """Where the i-th tile of keys begins: in the i-th part of the listed blocks, or in one of two
    runs of tiles, `firsts` of them from `first` on and the others from `second` on.

    A tile of several short blocks, of `firsts` in the list, does not begin anywhere: all its keys
    [BLOCK_N], negative where there is none.
    """
    if LISTS and BLOCK < BLOCK_N:
        o_n = tl.arange(0, BLOCK_N)
        i_id = i * (BLOCK_N // BLOCK) + o_n // BLOCK
        b_id = tl.load(p_ids + i_id, mask=i_id < firsts, other=-1)
        start = tl.minimum(b_id, FAR // BLOCK) * BLOCK + o_n % BLOCK
    elif LISTS:
        tiles: tl.constexpr = BLOCK // BLOCK_N
        start = tl.load(p_ids + i // tiles) * BLOCK + i % tiles * BLOCK_N
    else:
        start = tl.where(i < firsts, first + i, second + i - firsts) * BLOCK_N
    return start


@triton.jit
def page_of(p_table, start, most, PAGE: tl.constexpr, SHORT: tl.constexpr):
    """The page id of a tile of keys, 64 bits wide: it is multiplied by the size of a page. SHORT:
    of every key, -1 where there is none below `most`.
    """
    if SHORT:
        m_n = (start >= 0) & (start < most)
        page = tl.load(p_table + start // PAGE, mask=m_n, other=-1)
    else:
        page = tl.load(p_table + start // PAGE)
    return page.to(tl.int64)


@triton.jit
def over_keys(
    b_acc, b_sum, b_max, b_q, b_rest,
    begin, end, first, firsts, second, p_ids, p_table, k, v, k_boxes, v_boxes, k_head, v_head,
    pages, stride_kp, stride_vp, b_lo, b_hi, b_position, window, sinks, least, most,
    scale, softcap,
    BLOCK_N: tl.constexpr, BLOCK: tl.constexpr, PAGE: tl.constexpr,
    DIM: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr,
    V_DIM: tl.constexpr, V_PAD: tl.constexpr, VALUES_IN_KEYS: tl.constexpr,
    LISTS: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, MASKED: tl.constexpr,
    BOXES: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Tiles begin .. end of keys into the running maximum, sum and output. The next tile's page id
    is carried in a loop variable: loaded where it is used, it keeps Triton from overlapping tiles.

    BOXES: a tile of K or V is one bulk copy, of rows of `k_boxes` and `v_boxes`, in which the head
    begins at row k_head and v_head of a page; copies from outside of the pages bring zeros.
    """
    SHORT: tl.constexpr = LISTS and BLOCK < BLOCK_N  # several blocks are a tile, see `key_start`
    o_n, o_main, o_v = tl.arange(0, BLOCK_N), tl.arange(0, MAIN), tl.arange(0, V_PAD)
    if begin < end:
        start = key_start(begin, p_ids, first, firsts, second, BLOCK_N, BLOCK, LISTS)
        page = page_of(p_table, start, most, PAGE, SHORT)
        for i in tl.range(begin, end):
            following = key_start(
                tl.minimum(i + 1, end - 1), p_ids, first, firsts, second, BLOCK_N, BLOCK, LISTS
            )
            next_page = page_of(p_table, following, most, PAGE, SHORT)
            m_page = (page >= 0) & (page < pages)
            o_key = start + (0 if SHORT else o_n)
            m_n = m_page & (o_key >= 0)
            if MASKED:  # what no row sees may be memory of a former owner
                m_n = m_page & (o_key >= least) & (o_key < most)
            if SHORT:
                o_k, o_page_v = (start % PAGE)[:, None] * DIM, (page * stride_vp)[:, None]
                p_k = k + (page * stride_kp)[:, None]
            else:
                o_k, o_page_v = (start % PAGE + o_n)[:, None] * DIM, page * stride_vp
                p_k = k + page * stride_kp
            if BOXES:
                k_row = page * (stride_kp // DIM) + k_head + start % PAGE
                b_k = k_boxes.load([tl.where(m_page, k_row, -BLOCK_N).to(tl.int32), 0])
            else:
                b_k = tl.load(
                    p_k + o_k + o_main[None, :],
                    mask=m_n[:, None] & (o_main < DIM)[None, :],
                    other=0.0,
                )
            b_s = product(b_q, tl.trans(b_k), UPCAST)
            if REST:
                o_rest = MAIN + tl.arange(0, REST)
                b_k_rest = tl.load(
                    p_k + o_k + o_rest[None, :],
                    mask=m_n[:, None] & (o_rest < DIM)[None, :],
                    other=0.0,
                )
                b_s += product(b_rest, tl.trans(b_k_rest), UPCAST)
            if SOFTCAP:
                b_s = tanh(b_s * (scale / softcap)) * (softcap * LOG2E)
            else:
                b_s = b_s * (scale * LOG2E)
            if MASKED:
                m_seen = (o_key[None, :] >= b_lo[:, None]) & (o_key[None, :] < b_hi[:, None])
                if WINDOW:
                    near = b_position[:, None] - o_key[None, :] < window
                    m_seen = m_seen & (near | (o_key < sinks)[None, :])
                b_s = tl.where(m_seen & m_page, b_s, -float("inf"))
            else:  # an absent page
                b_s = b_s + tl.where(m_page, 0.0, -float("inf"))
            b_top = tl.maximum(b_max, tl.max(b_s, 1))
            b_base = tl.where(b_top == -float("inf"), 0.0, b_top)
            b_p = tl.exp2(b_s - b_base[:, None])
            b_keep = tl.exp2(b_max - b_base)
            b_sum = b_sum * b_keep + tl.sum(b_p, 1)
            b_max = b_top
            if VALUES_IN_KEYS and V_PAD == MAIN and V_DIM == MAIN:
                b_v = b_k
            elif BOXES:
                v_row = page * (stride_vp // V_DIM) + v_head + start % PAGE
                b_v = v_boxes.load([tl.where(m_page, v_row, -BLOCK_N).to(tl.int32), 0])
                if MASKED:  # a weight of zero times what a former owner left may be NaN
                    b_v = tl.where(m_n[:, None], b_v, 0.0)
            else:
                p_v = p_k + o_k
                if not VALUES_IN_KEYS:
                    p_v = v + o_page_v + (start % PAGE + (0 if SHORT else o_n))[:, None] * V_DIM
                b_v = tl.load(
                    p_v + o_v[None, :], mask=m_n[:, None] & (o_v < V_DIM)[None, :], other=0.0
                )
            b_acc = b_acc * b_keep[:, None] + product(b_p.to(b_v.dtype), b_v, UPCAST)
            start = following
            page = next_page
    return b_acc, b_sum, b_max


# Numbers that change from step to step: no variant of a kernel for each kind of number.
COUNTS = [
    "sequences", "pages", "table_width", "table_stride", "columns", "window", "sinks", "scale",
    "softcap", "least_rows", "most_rows", "splits",
]  # fmt: skip


@triton.jit(do_not_specialize=COUNTS)
def attend_tiles(
    q, k, v, k_boxes, v_boxes, out, lse, table, cu_rows, positions, lo, hi, sink_logits, ids,
    list_of_row,
    sequences, pages, table_width, table_stride, columns,
    stride_qt, stride_qh, stride_kp, stride_kh, stride_vp, stride_vh,
    window, sinks, scale, softcap, least_rows, most_rows, splits,
    HEADS: tl.constexpr, GROUP: tl.constexpr, TAKEN: tl.constexpr, SLOTS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK: tl.constexpr, PAGE: tl.constexpr,
    DIM: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr,
    V_DIM: tl.constexpr, V_PAD: tl.constexpr, VALUES_IN_KEYS: tl.constexpr,
    LO: tl.constexpr, HI: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
    SINKS: tl.constexpr, LISTS: tl.constexpr, OWNERS: tl.constexpr, LIST_OF_ROW: tl.constexpr,
    SPLIT: tl.constexpr, BY_TILE: tl.constexpr, TRIM: tl.constexpr, BOXES: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """One tile of BLOCK_M = rows x SLOTS, with TAKEN heads of a group in the SLOTS of a row; see
    `attend` for the tensors.

    Serves sequences of least_rows .. most_rows rows alone. SPLIT: keys per program, whose result
    goes to [row or sequence, head, split] of fp32 `out` and `lse`; 0: all keys. TRIM:
    tiles of keys that all rows see whole are not masked. BY_TILE: a program finds its sequence by
    the number of its tile, or else the tile of each sequence is one row.
    """
    BLOCK_Q: tl.constexpr = BLOCK_M // SLOTS
    # The last rows of a sequence see most keys: they begin first.
    i_tile = tl.num_programs(0) - 1 - tl.program_id(0)
    i_part, i_split = tl.program_id(1), tl.program_id(2)
    parts: tl.constexpr = (GROUP + TAKEN - 1) // TAKEN
    i_kv = i_part // parts
    i_sequence = i_tile  # of one row each
    if BY_TILE:
        i_sequence = sequence_of(cu_rows, sequences, i_tile, BLOCK_Q)
    row_begin = tl.load(cu_rows + i_sequence)
    rows = tl.load(cu_rows + i_sequence + 1) - row_begin
    tile_begin = 0
    if BY_TILE:
        tile_begin = (i_tile - (row_begin // BLOCK_Q + i_sequence)) * BLOCK_Q
    if tile_begin >= rows or rows < least_rows or rows > most_rows:
        return
    o_m = tl.arange(0, BLOCK_M)
    o_group = i_part % parts * TAKEN + o_m % SLOTS
    m_row = tile_begin + o_m // SLOTS < rows
    m_m = m_row & (o_m % SLOTS < TAKEN) & (o_group < GROUP)
    # Rows beyond the end take the place of the first, so that every address is sound.
    o_row = row_begin + tl.where(m_row, tile_begin + o_m // SLOTS, tile_begin)
    o_head = i_kv * GROUP + tl.minimum(o_group, GROUP - 1)
    b_position = tl.minimum(tl.load(positions + o_row), FAR).to(tl.int32)
    b_lo = tl.zeros((BLOCK_M,), tl.int32)
    b_hi = b_position + 1
    if LO:
        b_lo = tl.maximum(tl.load(lo + o_row), 0)
    if HI:
        b_hi = tl.load(hi + o_row)
    b_hi = tl.minimum(b_hi, table_width * PAGE)
    least, most = tl.min(b_lo), tl.max(b_hi)
    k_head, v_head = i_kv * stride_kh // DIM, i_kv * stride_vh // V_DIM  # of BOXES
    p_ids = table  # of no matter without lists
    p_table = table + i_sequence.to(tl.int64) * table_stride
    p_q = q + o_row.to(tl.int64)[:, None] * stride_qt + o_head[:, None] * stride_qh
    o_main, o_rest = tl.arange(0, MAIN), MAIN + tl.arange(0, REST if REST else 16)
    b_q = tl.load(p_q + o_main[None, :], mask=m_m[:, None] & (o_main < DIM)[None, :], other=0.0)
    b_rest = b_q
    if REST:
        b_rest = tl.load(
            p_q + o_rest[None, :], mask=m_m[:, None] & (o_rest < DIM)[None, :], other=0.0
        )
    if LISTS:
        p_ids = list_of(
            ids, list_of_row, row_begin + tile_begin, i_kv, i_part % parts, columns,
            HEADS, GROUP, OWNERS, LIST_OF_ROW,
        )  # fmt: skip
        first, firsts, second = 0, columns if BLOCK < BLOCK_N else 0, 0
        begin, end = 0, listed_tiles(p_ids, columns, most, BLOCK_N, BLOCK)
        if SPLIT:
            begin = tl.minimum(i_split * (SPLIT // BLOCK_N), end)
            end = tl.minimum(begin + SPLIT // BLOCK_N, end)
    else:
        begin = 0
        first, firsts, second, end = seen_tiles(
            least, most, tl.min(b_position), window, sinks, i_split, BLOCK_N, WINDOW, SPLIT
        )
    b_acc = tl.zeros((BLOCK_M, V_PAD), tl.float32)
    b_sum = tl.zeros((BLOCK_M,), tl.float32)
    b_max = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    if TRIM:  # masked tiles, then those that all rows see whole, then masked ones
        whole, edge_begin = whole_tiles(
            b_lo, b_hi, b_position, m_row, window, firsts, second, end, BLOCK_N, WINDOW
        )
        if LO or WINDOW:
            b_acc, b_sum, b_max = over_keys(
                b_acc, b_sum, b_max, b_q, b_rest, 0, whole, first, firsts, second, p_ids, p_table,
                k + i_kv * stride_kh, v + i_kv * stride_vh, k_boxes, v_boxes, k_head, v_head,
                pages, stride_kp, stride_vp,
                b_lo, b_hi, b_position, window, sinks, least, most, scale, softcap,
                BLOCK_N, BLOCK, PAGE, DIM, MAIN, REST, V_DIM, V_PAD, VALUES_IN_KEYS,
                LISTS, WINDOW, SOFTCAP, True, BOXES, UPCAST,
            )  # fmt: skip
        b_acc, b_sum, b_max = over_keys(
            b_acc, b_sum, b_max, b_q, b_rest, whole, edge_begin, first, firsts, second, p_ids,
            p_table, k + i_kv * stride_kh, v + i_kv * stride_vh, k_boxes, v_boxes, k_head, v_head,
            pages, stride_kp, stride_vp,
            b_lo, b_hi, b_position, window, sinks, least, most, scale, softcap,
            BLOCK_N, BLOCK, PAGE, DIM, MAIN, REST, V_DIM, V_PAD, VALUES_IN_KEYS,
            LISTS, WINDOW, SOFTCAP, False, BOXES, UPCAST,
        )  # fmt: skip
        begin = edge_begin
    b_acc, b_sum, b_max = over_keys(
        b_acc, b_sum, b_max, b_q, b_rest, begin, end, first, firsts, second, p_ids, p_table,
        k + i_kv * stride_kh, v + i_kv * stride_vh, k_boxes, v_boxes, k_head, v_head,
        pages, stride_kp, stride_vp,
        b_lo, b_hi, b_position, window, sinks, least, most, scale, softcap,
        BLOCK_N, BLOCK, PAGE, DIM, MAIN, REST, V_DIM, V_PAD, VALUES_IN_KEYS,
        LISTS, WINDOW, SOFTCAP, True, BOXES, UPCAST,
    )  # fmt: skip
    write_rows(
        out, lse, sink_logits, b_acc, b_sum, b_max, o_row, o_head, i_sequence, i_split, splits, m_m,
        HEADS, V_DIM, V_PAD, SINKS, SPLIT, BY_TILE,
    )  # fmt: skip
