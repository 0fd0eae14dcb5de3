"""Page writes in plain torch."""

from __future__ import annotations

import torch

from .layout import PageLayout


def write_pages(
    layout: PageLayout,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slots: torch.Tensor,
    clear: bool = True,
) -> None:
    """See `saccade.kernels.store.write_pages`."""
    keep = slots >= 0
    written = slots[keep]
    if clear:
        v_pages[written[written % layout.page_size == 0] // layout.page_size] = 0
    layout.put(k_pages, v_pages, k[keep], v[keep], written)
