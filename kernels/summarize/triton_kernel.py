"""Means of blocks and windows of keys (and values) in Triton."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def mean_rows(
    p_pages,
    p_means,
    p_members,
    p_begin,
    p_home,
    s_page,
    s_head,
    members,
    kv_heads,
    width,
    o_first,
    D: tl.constexpr,
    BD: tl.constexpr,
    BLOCK: tl.constexpr,
    PAGE: tl.constexpr,
    BN: tl.constexpr,
):
    """One window of BLOCK tokens of one head, to the channels from o_first on of its summary.

    Tokens are added in runs of BN from the window's first on, so that the sum is the same wherever
    in a page it begins and however the prompt was cut.
    """
    i_window, i_kv = tl.program_id(0).to(tl.int64), tl.program_id(1)
    begin = tl.load(p_begin + i_window).to(tl.int32)
    o_d, o_n = tl.arange(0, BD), tl.arange(0, BN)
    total = tl.zeros([BD], tl.float32)
    for first in tl.range(0, BLOCK, BN):
        m_n = first + o_n < BLOCK
        token = begin + first + o_n
        page = tl.load(p_members + i_window * members + token // PAGE, mask=m_n, other=-1)
        p_token = p_pages + page.to(tl.int64) * s_page + i_kv * s_head + token % PAGE * D
        m_k = (m_n & (page >= 0))[:, None] & (o_d < D)[None, :]
        k = tl.load(p_token[:, None] + o_d[None, :], mask=m_k, other=0.0)
        total += tl.sum(k.to(tl.float32), 0)
    home = tl.load(p_home + i_window)
    p_to = p_means + (home * kv_heads + i_kv) * width + o_first + o_d
    tl.store(p_to, (total / BLOCK).to(p_means.dtype.element_ty), mask=(o_d < D) & (home >= 0))
