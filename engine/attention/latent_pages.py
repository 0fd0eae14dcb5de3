"""The pages of a window, expanded for one layer of one step into pages of keys and values."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch

from ...kernels.store import write_pages
from .base import LayerCache, Step, UpMaps


@dataclass(frozen=True)
class WindowPages:
    """The pages that hold a key some row of the step sees; they are renumbered 0 .. n - 1.

    slots: int64 [n * page size], where each token of them goes, -1 for those not written yet.
    """

    ids: torch.Tensor  # int64 [n]
    page_table: torch.Tensor  # int32 [S, max pages], in the new numbers, -1 outside the windows
    slots: torch.Tensor


def window_pages(step: Step, window: int) -> WindowPages:
    """The pages in the windows of all rows, by sequence and position."""
    size = step.page_size
    table = torch.full_like(step.page_table, -1)
    known = []
    count = 0
    for s, (begin, end) in enumerate(pairwise(step.cu_rows.tolist())):
        if begin == end:
            continue
        first = max(int(step.positions[begin]) - window + 1, 0) // size
        stop = int(step.positions[end - 1]) + 1
        pages = -(-stop // size) - first
        table[s, first : first + pages] = torch.arange(count, count + pages, dtype=torch.int32)
        known.append(torch.arange(pages * size) < stop - first * size)
        count += pages
    slots = torch.arange(count * size)
    ids = step.page_table[table >= 0].long()
    return WindowPages(ids, table, slots.where(torch.cat(known), -1))


def expanded_pages(
    cache: LayerCache, pages: WindowPages, up: UpMaps
) -> tuple[torch.Tensor, torch.Tensor]:
    """K and V pages of every head, [n, H, ...], for the tokens in `pages`."""
    layout = cache.layout
    k, v = up.expand(layout.gather_keys(cache.k, pages.ids))
    k_pages, v_pages = layout.allocate(
        pages.ids.shape[0], k.shape[1], k.shape[2], v.shape[2], k.dtype, k.device
    )
    write_pages(layout, k_pages, v_pages, k, v, pages.slots)
    return k_pages, v_pages
