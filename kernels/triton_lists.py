"""Lists of the best blocks, from scores that another Triton kernel wrote: no sorting.

For decode: a row is a token that is generated, and its scores are far fewer numbers than the keys
they speak of. Written by as many programs as fill the GPU, they are ranked by one for each list, of
any width: it finds the lowest score that is chosen, eight bits at a time from the highest, and then
writes what is no lower in the order of the blocks.

Names: i_ index, p_ pointer, o_ offset, m_ mask.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def ordered_scores(p_row, i_block, own, blocks, forced_first, forced_recent):
    """(int64 numbers in 0 .. 2^32 that order as scores do, which blocks may be chosen). Forced
    blocks lie above every score, which is not read; NaN and minus infinity are not chosen.
    """
    m_seen = i_block <= own
    forced = (i_block < forced_first) | (i_block > own - forced_recent)
    m_n = m_seen & (i_block < blocks) & (forced == 0)
    score = tl.load(p_row + i_block, mask=m_n, other=float("-inf")).to(tl.float32)
    bits = (score + 0.0).to(tl.int32, bitcast=True)  # -0 becomes 0
    order = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64) + 2147483648
    return tl.where(forced, 4294967295, order), m_seen & (forced | (score > float("-inf")))


@triton.jit
def list_best(
    p_scores, p_positions, p_ids, owners, blocks, listed, forced_first, forced_recent,
    BLOCK: tl.constexpr, BN: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The list of one row and owner. Equal scores: the later blocks."""
    i_row = tl.program_id(0).to(tl.int64)
    i_list = i_row * owners + tl.program_id(1)
    own = (tl.load(p_positions + i_row) // BLOCK).to(tl.int32)
    p_row = p_scores + i_list * blocks
    o_n, o_bin = tl.arange(0, BN), tl.arange(0, 256)
    lowest = tl.zeros([], tl.int64)  # the highest bits of the lowest order that is chosen
    left = listed + tl.zeros([], tl.int32)  # how many of these bits are chosen
    alike = tl.zeros([], tl.int32)  # and how many there are
    for digit in tl.static_range(4):
        shift = 24 - 8 * digit
        count = tl.zeros([256], tl.int32)
        for first in tl.range(0, own + 1, BN):
            order, fit = ordered_scores(
                p_row, first + o_n, own, blocks, forced_first, forced_recent
            )
            fit = fit & (order >> (shift + 8) == lowest)
            count += tl.histogram(((order >> shift) & 255).to(tl.int32), 256, mask=fit)
        total = tl.sum(count, 0)
        above = total - tl.cumsum(count, 0)
        left = tl.minimum(left, total)
        here = (above < left) & (above + count >= left)
        lowest = lowest * 256 + tl.sum(tl.where(here, o_bin, 0), 0).to(tl.int64)
        alike = tl.sum(tl.where(here, count, 0), 0)
        left -= tl.sum(tl.where(here, above, 0), 0)

    p_list = p_ids + i_list * listed
    written = tl.zeros([], tl.int32)
    passed = tl.zeros([], tl.int32)
    for first in tl.range(0, own + 1, BN):
        order, fit = ordered_scores(p_row, first + o_n, own, blocks, forced_first, forced_recent)
        equal = (fit & (order == lowest)).to(tl.int32)
        late = (equal > 0) & (passed + tl.cumsum(equal, 0) > alike - left)
        taken = late | (fit & (order > lowest))
        place = written + tl.cumsum(taken.to(tl.int32), 0) - 1
        tl.store(p_list + place, first + o_n, mask=taken)
        written += tl.sum(taken.to(tl.int32), 0)
        passed += tl.sum(equal, 0)
    o_w = tl.arange(0, WIDTH)
    tl.store(p_list + o_w, tl.full([WIDTH], -1, tl.int32), mask=(o_w >= written) & (o_w < listed))
