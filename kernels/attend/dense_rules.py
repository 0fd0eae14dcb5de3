"""Who computes dense attention of prompts on a GPU: pure functions, with their reasons.

In this order: flash-attn 3, flash-attn 2 (each where it is installed), cuDNN through torch, and our
own Triton kernel, which takes everything. On Hopper the first and the third overlap softmax with
the matrix products, which Triton does not: 620-685 and 580-617 TFLOP/s at 128 channels against
390-490 (see "Best public figures" in the notes on GPU kernels). What reads few keys (windows, block
lists, bounds) stays with our kernels, which skip what is not seen; so does decode.

Other libraries add in another order than our kernels: a prompt's last bits may then depend on how
it was cut into chunks. `SACCADE_DENSE=own` keeps everything with ours.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from ..store import RowLayout
from .call import AttendCall

SETTING = "SACCADE_DENSE"
FLASH3, FLASH2, CUDNN, OWN = "flash3", "flash2", "cudnn", "own"
WAYS = (FLASH3, FLASH2, CUDNN)  # in the order of preference; then OWN
ROWS_PER_SEQUENCE = 8  # below, loads are all that matters: the kernels of decode
CUDNN_ROWS = 128  # below, cuDNN's copies of K and V cost more than its products save
HOPPER = (9, 0)
HALVES = (torch.bfloat16, torch.float16)

# cuDNN reads K and V that lie together, so that pages are copied, in pieces of so many tokens: 8
# heads of 128 channels take 128 MiB. Copying moves 4 bytes for every 1024 products of a chunk of
# 2048 rows and four heads of a group.
PIECE = 32768
# cuDNN builds a plan for every shape: rows are filled up to multiples of this.
FILL = 256


@dataclass(frozen=True)
class Call:
    """One call of `attend`, as far as the choice goes. spans: as in `Keys`; rest: what only our own
    kernels serve, in words.
    """

    capability: tuple[int, int]
    dtype: torch.dtype
    head_dim: int
    v_dim: int
    page: int
    spans: tuple[tuple[int, int], ...] | None
    softcap: bool = False
    rest: str | None = None


def call_of(capability: tuple[int, int], call: AttendCall) -> Call:
    """The arguments of `attend` in short."""
    return Call(
        capability,
        call.q.dtype,
        call.head_dim,
        call.v_pages.shape[-1],
        call.layout.page_size,
        call.keys.spans,
        call.softcap is not None,
        _rest(call),
    )


def _rest(call: AttendCall) -> str | None:
    keys = call.keys
    if not isinstance(call.layout, RowLayout):
        return "pages have the CPU's layout"
    if keys.blocks is not None or keys.lo is not None or keys.hi is not None:
        return "lists or bounds of keys"
    if keys.window is not None:
        return "a window: our kernel skips what lies before it"
    if call.sink_logits is not None:
        return "sink logits"
    if call.value_dim is not None:
        return "values in the keys"
    if call.out_dtype != call.q.dtype:
        return f"output {call.out_dtype} for input {call.q.dtype}"
    if any(each.stride(-1) != 1 for each in (call.q, call.k_pages, call.v_pages)):
        return "last dimension is not contiguous"
    return None


def refusal(way: str, call: Call, setting: str | None = None) -> str | None:
    """Why this way cannot serve the call, whether it is installed or not; None: it can.

    setting: the value of SACCADE_DENSE, by default the environment's. Raises ValueError for one
    that names nothing.
    """
    chosen = os.environ.get(SETTING, "auto") if setting is None else setting
    if chosen not in ("auto", OWN, *WAYS):
        raise ValueError(f"{SETTING} must be auto, {OWN} or one of {', '.join(WAYS)}: {chosen!r}")
    if chosen not in ("auto", way):
        return f"{SETTING}={chosen}"
    if call.rest is not None:
        return call.rest
    if call.dtype not in HALVES:
        return f"dtype {call.dtype}"
    if call.spans is None:
        return "lengths are not known on the host"
    if reason := _by_rows(way, call.spans):
        return reason
    return _by_shape(way, call)


def _by_rows(way: str, spans: tuple[tuple[int, int], ...]) -> str | None:
    """By the numbers of rows."""
    rows = [stop - start for start, stop in spans]
    if not rows or min(rows) < 1:
        return "a sequence without rows"
    if sum(rows) < ROWS_PER_SEQUENCE * len(rows):
        return f"{sum(rows)} rows of {len(rows)} sequences: decode"
    if way == CUDNN and min(rows) < CUDNN_ROWS:
        return f"a sequence of {min(rows)} rows, of at least {CUDNN_ROWS}"
    return None


def _by_shape(way: str, call: Call) -> str | None:
    """By the GPU, the channels and the pages."""
    dims, most = (call.head_dim, call.v_dim), 128 if way == CUDNN else 256
    if max(dims) > most or any(dim % 8 for dim in dims):
        return f"{call.head_dim} and {call.v_dim} channels, of at most {most} in eights"
    if way == FLASH2:
        if call.capability < (8, 0):
            return "a GPU before Ampere"
        if call.page % 256:
            return f"pages of {call.page} tokens, of a multiple of 256"
    elif call.capability != HOPPER:
        return "made for Hopper, and not faster elsewhere"
    if way == CUDNN and call.softcap:
        return "a softcap"
    if dims[0] != dims[1] and (way != FLASH3 or dims != (192, 128)):
        return f"keys of {call.head_dim} and values of {call.v_dim} channels"
    return None


def decide(
    call: Call, missing: dict[str, str | None], setting: str | None = None
) -> dict[str, str]:
    """For every way why it is not taken, and for that which is: "chosen".

    missing: for every way why it cannot be used on this machine at all, or None.
    """
    found: dict[str, str] = {}
    for way in WAYS:
        reason = missing[way] or refusal(way, call, setting)
        if reason is None and "chosen" in found.values():
            reason = "one before it serves the call"
        found[way] = reason or "chosen"
    found[OWN] = "one before it serves the call" if "chosen" in found.values() else "chosen"
    return found


def pieces(start: int, page: int) -> list[tuple[int, int]]:
    """Keys 0 .. start, a multiple of the page, in few lengths: PIECE, and powers of two of pages
    below, so that cuDNN needs no more than a dozen plans for any number of keys.
    """
    found, at = [], 0
    while at < start:
        size = min(PIECE, page << ((start - at) // page).bit_length() - 1)
        found.append((at, at + size))
        at += size
    return found


def scratch_bytes(rows: int, heads: int, kv_heads: int, head_dim: int) -> int:
    """What cuDNN's way takes beside q and the result: copies of K and V, and fp32 partial results.

    Also flash-attn's, which is less: it copies nothing.
    """
    filled = -(-(rows + FILL) // FILL) * FILL
    copied = 2 * max(PIECE, filled) * kv_heads * head_dim * 2
    return copied + filled * heads * (head_dim * (2 * 2 + 3 * 4) + 3 * 4)
