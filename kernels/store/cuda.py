"""Page writes by the CUDA kernel."""

from __future__ import annotations

from .. import cuda_native
from .call import WriteCall
from .rows import RowLayout

THREADS, MARKS = 128, 32  # bytes of shared memory: one bit a token of the largest page


def supports(call: WriteCall) -> str | None:
    """None when the kernel can serve this call, otherwise the reason."""
    if not isinstance(call.layout, RowLayout):
        return "pages have the CPU's layout"
    k, v, k_pages, v_pages = call.k, call.v, call.k_pages, call.v_pages
    if k.dtype != v.dtype:
        return "K and V of different dtypes"
    if not (k_pages[:1].is_contiguous() and v_pages[:1].is_contiguous()):
        return "the heads of a page are not contiguous"
    return cuda_native.unsupported(k_pages, v_pages, k, v) or cuda_native.elsewhere(k, call.slots)


def write_pages(call: WriteCall) -> None:
    """See `saccade.kernels.store.write_pages`."""
    k, v, k_pages, v_pages = call.k, call.v, call.k_pages, call.v_pages
    rows, kv_heads, dim = k.shape
    if not rows:
        return
    size = k.itemsize
    fields = {
        "rows": rows,
        "kv_heads": kv_heads,
        "page": call.layout.page_size,
        "pages": k_pages.shape[0],
        "k_bytes": dim * size,
        "v_bytes": v.shape[2] * v.itemsize,
        "k": k.data_ptr(),
        "k_row": k.stride(0) * size,
        "k_head": k.stride(1) * size,
        "v": v.data_ptr(),
        "v_row": v.stride(0) * v.itemsize,
        "v_head": v.stride(1) * v.itemsize,
        "slots": call.slots.data_ptr(),
        "k_pages": k_pages.data_ptr(),
        "v_pages": v_pages.data_ptr(),
        "k_page": k_pages.stride(0) * size,
        "v_page": v_pages.stride(0) * v.itemsize,
        "clear": int(call.clear),
    }
    cuda_native.launch("saccade_write_16", (rows, 1, 1), THREADS, MARKS, k.device, fields)
