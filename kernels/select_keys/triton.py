"""Selection by key scores on a GPU."""

from __future__ import annotations

import torch

from .. import gpu
from .. import triton_sizes as sizes
from ..ranked_lists import best_lists
from ..select import Candidates
from ..store import PageLayout
from .rule import KeyRule

BESIDE = 32  # blocks of a list that each of it is compared with at a time


def supports(
    layout: PageLayout,
    q: torch.Tensor,
    k_pages: torch.Tensor,
    candidates: Candidates,
    rule: KeyRule,
    scale: float,
    lse: torch.Tensor,
) -> str | None:
    """None when the kernels can serve this call, otherwise the reason."""
    if reason := layout.triton_refusal():
        return reason
    if q.shape[2] > 256:
        return "more than 256 channels"
    return gpu.triton_refusal(q, k_pages, lse)


def select_keys(
    layout: PageLayout,
    q: torch.Tensor,
    k_pages: torch.Tensor,
    candidates: Candidates,
    rule: KeyRule,
    scale: float,
    lse: torch.Tensor,
) -> torch.Tensor:
    """See `saccade.kernels.select_keys.select_keys`. Rows go in passes whose scores have room."""
    (rows, heads, _), blocks, block = q.shape, candidates.blocks, candidates.block
    mass = rule.union == "mean_prob"
    scored = 1 if mass else heads
    forced, positions = (rule.first, rule.recent), candidates.positions.contiguous()
    ids = torch.empty((rows, rule.owners(heads), rule.listed), dtype=torch.int32, device=q.device)
    for first, count in sizes.passes(rows, (scored + 1) * blocks):
        part = slice(first, first + count)
        scores = torch.empty((count, scored, blocks), dtype=torch.float32, device=q.device)
        _score(q, k_pages, candidates, scale, lse if mass else None, scores, first)
        if rule.union == "rank_major":
            scores = _union(scores, positions[part], block, rule)
        best_lists(scores, ids[part], positions[part], block, forced)
    return ids


def _score(
    q: torch.Tensor,
    k_pages: torch.Tensor,
    candidates: Candidates,
    scale: float,
    lse: torch.Tensor | None,
    scores: torch.Tensor,
    first: int,
) -> None:
    """Writes scores [n, H, blocks], or, with the rows' lse, [n, 1, blocks] of the probabilities, of
    the rows from `first` on.
    """
    from .triton_kernel import score_heads, score_mass

    (rows, _, blocks), (_, heads, dim) = scores.shape, q.shape
    kv_heads, table = k_pages.shape[1], candidates.page_table.contiguous()
    keys = 2 * sizes.scored(dim, q.dtype)  # one tile of keys where bounds are two
    tiles = -(-blocks * candidates.block // max(keys, candidates.block))
    rows_and_pages = (
        table,
        candidates.cu_rows.contiguous(),
        candidates.positions.contiguous(),
    )
    strides = (*q.stride()[:2], *k_pages.stride()[:3], table.stride(0))
    sequences = table.shape[0]
    constants = {
        "D": dim,
        "BD": max(sizes.power_of_two(dim), 16),
        "GROUP": heads // kv_heads,
        "BG": sizes.HEADS,
        "SP": sizes.power_of_two(sequences),
        "BLOCK": candidates.block,
        "PAGE": candidates.page_size,
        "BN": keys,
        "UPCAST": gpu.upcast(q),
        "num_warps": 4,
        "num_stages": 1,
    }
    if lse is None:
        score_heads[(rows, kv_heads, tiles)](
            q, k_pages, *rows_and_pages, scores, *strides, table.shape[1], sequences, heads,
            first, blocks, scale, **constants,
        )  # fmt: skip
    else:
        score_mass[(rows, tiles)](
            q, k_pages, *rows_and_pages, lse, scores, *strides, lse.stride(0), table.shape[1],
            sequences, kv_heads, first, blocks, scale, **constants,
        )  # fmt: skip


def _union(
    scores: torch.Tensor, positions: torch.Tensor, block: int, rule: KeyRule
) -> torch.Tensor:
    """float32 [n, 1, blocks] that order as the union of the heads' lists does."""
    from .triton_kernel import union_ranks

    rows, heads, blocks = scores.shape
    ids = torch.empty((rows, heads, rule.listed), dtype=torch.int32, device=scores.device)
    best_lists(scores, ids, positions, block, (rule.first, rule.recent))
    ranks = torch.full((rows, 1, blocks), -torch.inf, dtype=torch.float32, device=scores.device)
    union_ranks[(rows, heads)](
        scores,
        ids,
        positions,
        ranks,
        heads,
        blocks,
        rule.listed,
        rule.first,
        rule.recent,
        BLOCK=block,
        WIDTH=sizes.power_of_two(rule.listed),
        BN=BESIDE,
        num_warps=4,
    )
    return ranks
