"""Page writes on a GPU where the CUDA kernel does not serve."""

from __future__ import annotations

from .. import gpu
from .. import triton_sizes as sizes
from .call import WriteCall

CLEARED = 64  # rows of a program that looks for first tokens: a chunk has one in every page


def supports(call: WriteCall) -> str | None:
    """None when the kernels can serve this call, otherwise the reason."""
    if reason := call.layout.triton_refusal(call.k_pages, call.v_pages):
        return reason
    keys, values = (call.k_pages, call.k), (call.v_pages, call.v)
    if not call.slots.is_contiguous():
        return "slots are not contiguous"
    return gpu.triton_refusal(*keys, *(values if call.v.shape[2] else ()))


def write_pages(call: WriteCall) -> None:
    """See `saccade.kernels.store.write_pages`. Pages are cleared by a launch before the rows."""
    from .triton_kernel import clear_pages, put_rows

    (rows, kv_heads, _), v_dim = call.k.shape, call.v.shape[2]
    slots, v_pages, page = call.slots, call.v_pages, call.layout.page_size
    if not rows or not kv_heads:
        return
    if call.clear and v_dim:
        numbers = page * v_dim
        clear_pages[(-(-rows // CLEARED), kv_heads)](
            v_pages,
            slots,
            rows,
            v_pages.shape[0],
            *v_pages.stride()[:2],
            NUMBERS=numbers,
            PAGE=page,
            BR=CLEARED,
            BN=min(sizes.power_of_two(numbers), 256),
            num_warps=4,
        )
    for pages, values in ((call.k_pages, call.k), (v_pages, call.v)):
        if values.shape[2]:
            width = sizes.power_of_two(values.shape[2])
            tile = sizes.rows_of(width)
            put_rows[(-(-rows // tile), kv_heads)](
                values,
                pages,
                slots,
                rows,
                pages.shape[0],
                *values.stride()[:2],
                *pages.stride()[:2],
                D=values.shape[2],
                BD=width,
                PAGE=page,
                BR=tile,
                num_warps=4,
            )
