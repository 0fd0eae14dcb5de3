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
    unit = layout.unit(k.dtype)
    keep = slots >= 0
    page, offset = slots[keep] // layout.page_size, slots[keep] % layout.page_size
    if clear:
        v_pages[page[offset == 0]] = 0
    k_pages[page, :, :, offset] = k[keep].reshape(page.numel(), *k_pages.shape[1:3], unit)
    v_pages[page, :, offset // unit, :, offset % unit] = v[keep]
