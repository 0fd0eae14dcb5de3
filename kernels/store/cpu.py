"""Page writes by the compiled CPU kernel."""

from __future__ import annotations

import torch

from .. import native
from .layout import PageLayout


def supports(
    layout: PageLayout,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slots: torch.Tensor,
    clear: bool = True,
) -> str | None:
    """None when the kernel can serve this call, otherwise the reason."""
    if not slots.is_contiguous():
        return "slots are not contiguous"
    if k.dtype != v.dtype:
        return "K and V of different dtypes"
    return layout.cpu_refusal(k_pages, v_pages) or native.unsupported(k, v, k_pages, v_pages)


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
    native.kernels().write_pages(
        native.DTYPES[k.dtype],
        k.shape[0],
        k.shape[1],
        k.shape[2],
        v.shape[2],
        layout.page_size,
        k_pages.shape[0],
        *layout.steps(k_pages),
        k_pages.data_ptr(),
        v_pages.data_ptr(),
        k.data_ptr(),
        k.stride(0),
        k.stride(1),
        v.data_ptr(),
        v.stride(0),
        v.stride(1),
        slots.data_ptr(),
        clear,
    )
