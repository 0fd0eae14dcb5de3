"""Key bounds and selection by them on a GPU."""

from __future__ import annotations

import torch

from .. import gpu
from .. import triton_sizes as sizes
from ..compressed.lists import ListRule
from ..ranked_lists import best_lists
from ..select import Candidates
from ..store import PageLayout
from ..summarize import CompletedBlocks

RUN = 32  # keys taken at a time: 128 channels of them are 32 numbers for each of 128 threads


def supports(
    layout: PageLayout, k_pages: torch.Tensor, bounds: torch.Tensor, done: CompletedBlocks
) -> str | None:
    """None when the kernel can write these bounds, otherwise the reason."""
    if reason := layout.triton_refusal(k_pages):
        return reason
    if not bounds.is_contiguous():
        return "bounds are not contiguous"
    return gpu.triton_refusal(k_pages, bounds)


def selects(
    q: torch.Tensor,
    bounds: torch.Tensor,
    candidates: Candidates,
    rule: ListRule,
    reduction: str,
) -> str | None:
    """None when the kernels can select by these bounds, otherwise the reason."""
    if q.shape[2] > 256:
        return "more than 256 channels"
    return gpu.triton_refusal(q, bounds)


def key_bounds(
    layout: PageLayout, k_pages: torch.Tensor, bounds: torch.Tensor, done: CompletedBlocks
) -> None:
    """See `saccade.kernels.bounds.key_bounds`."""
    from .triton_kernel import extreme_rows

    kv_heads, dim = k_pages.shape[1], k_pages.shape[3]
    extreme_rows[(done.home.shape[0], kv_heads)](
        k_pages,
        bounds,
        done.members.contiguous(),
        done.begin.contiguous(),
        done.home.contiguous(),
        *k_pages.stride()[:2],
        done.members.shape[1],
        kv_heads,
        D=dim,
        BD=sizes.power_of_two(dim),
        BLOCK=done.block,
        PAGE=layout.page_size,
        BN=RUN,
        num_warps=4,
    )


def select_bounded(
    q: torch.Tensor,
    bounds: torch.Tensor,
    candidates: Candidates,
    rule: ListRule,
    reduction: str,
) -> torch.Tensor:
    """See `saccade.kernels.bounds.select_bounded`. Rows go in passes whose scores have room."""
    rows, kv_heads = q.shape[0], bounds.shape[2]
    blocks = candidates.blocks
    positions = candidates.positions.contiguous()
    ids = torch.empty((rows, kv_heads, rule.listed), dtype=torch.int32, device=q.device)
    for first, count in sizes.passes(rows, kv_heads * blocks):
        shape = (count, kv_heads, blocks)
        scores = torch.empty(shape, dtype=torch.float32, device=q.device)
        _bound(q, bounds, candidates, reduction, scores, first)
        part = slice(first, first + count)
        forced = rule.first, rule.recent
        best_lists(scores, ids[part], positions[part], candidates.block, forced)
    return ids


def _bound(
    q: torch.Tensor,
    bounds: torch.Tensor,
    candidates: Candidates,
    reduction: str,
    scores: torch.Tensor,
    first: int,
) -> None:
    """Writes the scores [n, Hkv, blocks] of rows `first` .. `first` + n."""
    from .triton_kernel import bound_blocks

    (rows, kv_heads, blocks), dim = scores.shape, q.shape[2]
    group, table = q.shape[1] // kv_heads, candidates.page_table.contiguous()
    keys = sizes.scored(dim, q.dtype)
    bound_blocks[(rows, kv_heads, -(-blocks // keys))](
        q,
        bounds,
        table,
        candidates.cu_rows.contiguous(),
        candidates.positions.contiguous(),
        scores,
        *q.stride()[:2],
        *bounds.stride()[:4],
        table.stride(0),
        table.shape[1],
        table.shape[0],
        kv_heads,
        first,
        blocks,
        D=dim,
        BD=max(sizes.power_of_two(dim), 16),
        GROUP=group,
        BG=sizes.HEADS,
        SP=sizes.power_of_two(table.shape[0]),
        BLOCK=candidates.block,
        PAGE=candidates.page_size,
        SLOTS=bounds.shape[1],
        BN=keys,
        SUM=reduction == "sum",
        UPCAST=gpu.upcast(q),
        num_warps=4,
        num_stages=1,
    )
