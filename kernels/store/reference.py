"""Page writes in plain torch."""

from __future__ import annotations

from .call import WriteCall


def write_pages(call: WriteCall) -> None:
    """See `saccade.kernels.store.write_pages`."""
    keep, size = call.slots >= 0, call.layout.page_size
    written = call.slots[keep]
    if call.clear:
        call.v_pages[written[written % size == 0] // size] = 0
    call.layout.put(call.k_pages, call.v_pages, call.k[keep], call.v[keep], written)
