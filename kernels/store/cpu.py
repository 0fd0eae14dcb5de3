"""Page writes by the compiled CPU kernel."""

from __future__ import annotations

from .. import native
from .call import WriteCall


def supports(call: WriteCall) -> str | None:
    """None when the kernel can serve this call, otherwise the reason."""
    if not call.slots.is_contiguous():
        return "slots are not contiguous"
    if call.k.dtype != call.v.dtype:
        return "K and V of different dtypes"
    pages = call.k_pages, call.v_pages
    return call.layout.cpu_refusal(*pages) or native.unsupported(call.k, call.v, *pages)


def write_pages(call: WriteCall) -> None:
    """See `saccade.kernels.store.write_pages`."""
    k, v, k_pages = call.k, call.v, call.k_pages
    native.kernels().write_pages(
        native.DTYPES[k.dtype],
        k.shape[0],
        k.shape[1],
        k.shape[2],
        v.shape[2],
        call.layout.page_size,
        k_pages.shape[0],
        *call.layout.steps(k_pages),
        k_pages.data_ptr(),
        call.v_pages.data_ptr(),
        k.data_ptr(),
        k.stride(0),
        k.stride(1),
        v.data_ptr(),
        v.stride(0),
        v.stride(1),
        call.slots.data_ptr(),
        call.clear,
    )
