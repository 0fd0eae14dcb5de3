"""Which tiles of keys a tile of rows goes over, for the Triton kernel of paged attention."""

from __future__ import annotations

import triton
import triton.language as tl

FAR = tl.constexpr(2**31 - 2)  # beyond every position


@triton.jit
def list_of(
    ids, list_of_row, i_row, i_kv, i_head, columns,
    HEADS: tl.constexpr, GROUP: tl.constexpr, OWNERS: tl.constexpr, LIST_OF_ROW: tl.constexpr,
):  # fmt: skip
    """Where the list of a row begins: of a KV head, or of its i_head-th query head."""
    i_list = i_row
    if LIST_OF_ROW:
        i_list = tl.load(list_of_row + i_row)
    i_owner = i_kv
    if OWNERS == HEADS:
        i_owner = i_kv * GROUP + i_head
    return ids + (i_list.to(tl.int64) * OWNERS + i_owner) * columns


@triton.jit
def listed_tiles(p_ids, columns, most, BLOCK_N: tl.constexpr, BLOCK: tl.constexpr):
    """How many tiles of keys below `most` an ascending list padded with -1 holds. The last block
    may reach beyond, where there are neither keys nor page ids; short blocks are several to a tile.
    """
    o_id = tl.arange(0, 64)
    count, last = 0, 0
    for i in tl.range(0, columns, 64):
        b_id = tl.load(p_ids + i + o_id, mask=i + o_id < columns, other=-1)
        m_held = (b_id >= 0) & (b_id < tl.cdiv(most, BLOCK))
        count += tl.sum(m_held.to(tl.int32))
        last = tl.maximum(last, tl.max(tl.where(m_held, b_id, 0)))
    if BLOCK < BLOCK_N:
        return tl.cdiv(count, BLOCK_N // BLOCK)
    tiles = tl.cdiv(tl.minimum(most - last * BLOCK, BLOCK), BLOCK_N)
    return tl.where(count == 0, 0, (count - 1) * (BLOCK // BLOCK_N) + tiles)


@triton.jit
def seen_tiles(
    least, most, position, window, sinks, i_split,
    BLOCK_N: tl.constexpr, WINDOW: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Which tiles of keys least .. most a tile of rows sees, the first of them at `position`:
    (first, firsts, second) of `key_start`, and how many in all.
    """
    first, firsts = 0, 0
    second, stop = least // BLOCK_N, tl.cdiv(most, BLOCK_N)
    if WINDOW:
        near = tl.maximum(position - window + 1, 0)
        first = second
        edge = tl.minimum(tl.cdiv(sinks, BLOCK_N), stop)
        second = tl.maximum(tl.maximum(near // BLOCK_N, edge), first)
        if SPLIT:
            first = tl.maximum(first, i_split * (SPLIT // BLOCK_N))
            edge = tl.minimum(edge, (i_split + 1) * (SPLIT // BLOCK_N))
        firsts = tl.maximum(edge - first, 0)
    if SPLIT:
        second = tl.maximum(second, i_split * (SPLIT // BLOCK_N))
        stop = tl.minimum(stop, (i_split + 1) * (SPLIT // BLOCK_N))
    return first, firsts, second, firsts + tl.maximum(stop - second, 0)


@triton.jit
def whole_tiles(
    b_lo, b_hi, b_position, m_row, window, firsts, second, end,
    BLOCK_N: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """(begin, end) of the tiles of keys, among all of a tile of rows, that all rows see whole."""
    latest = tl.max(tl.where(m_row, b_lo, 0))
    if WINDOW:
        latest = tl.maximum(latest, tl.max(tl.where(m_row, b_position - window + 1, 0)))
    begin = tl.minimum(firsts + tl.maximum(tl.cdiv(latest, BLOCK_N) - second, 0), end)
    earliest = tl.min(tl.where(m_row, b_hi, FAR)) // BLOCK_N
    return begin, tl.minimum(tl.maximum(firsts + earliest - second, begin), end)
