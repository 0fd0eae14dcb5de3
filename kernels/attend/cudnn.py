"""Dense attention of prompts by cuDNN, through torch's own operator.

cuDNN reads K and V that lie together, and masks from the first row on: a chunk that begins at token
`start` attends to the keys before it, without a mask and in pieces, and to its own, causally; the
results are merged. Rows and keys are filled up to few shapes, for each of which cuDNN makes a plan.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .. import gpu
from ..merge import merge
from . import dense_probe
from . import dense_rules as rules
from .call import AttendCall


def operator() -> Callable[..., Any]:
    """torch's operator, which also gives the logarithms of the sums (natural, [1, H, L] or
    [1, H, L, 1]), as its public function does not.
    """
    return torch.ops.aten._scaled_dot_product_cudnn_attention


def missing() -> str | None:
    """Why cuDNN cannot be used on this machine; None: it can."""
    if reason := gpu.libraries_missing():
        return reason
    if not torch.backends.cudnn.is_available():  # type: ignore[no-untyped-call]
        return "torch has no cuDNN"
    if not hasattr(torch.ops.aten, "_scaled_dot_product_cudnn_attention"):
        return f"torch {torch.__version__} has no attention by cuDNN"
    return None


def supports(call: AttendCall) -> str | None:
    """None when cuDNN can serve this call, otherwise the reason."""
    return dense_probe.refusal(rules.CUDNN, attend, missing, call)


def attend(call: AttendCall) -> tuple[torch.Tensor, torch.Tensor]:
    """See `saccade.kernels.attend.attend`."""
    spans, pages = call.keys.spans, (call.k_pages, call.v_pages)
    if spans is None:
        raise ValueError("attend by cuDNN needs the lengths on the host")
    out, lse = call.results()
    row = 0
    for table, (start, stop) in zip(call.keys.page_table, spans, strict=True):
        rows = slice(row, row + stop - start)
        out[rows], lse[rows] = _sequence(call.q[rows], pages, table, start, call.scale)
        row = rows.stop
    return out, lse


def _sequence(
    q: torch.Tensor,
    pages: tuple[torch.Tensor, torch.Tensor],
    table: torch.Tensor,
    start: int,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """out float32 [n, H, dv] and lse [n, H] of the rows at positions from `start` on."""
    count, page = q.shape[0], pages[0].shape[2]
    begin = start // page * page
    before = start - begin  # rows before the first, so that keys begin with a page
    filled = -(-(before + count) // rules.FILL) * rules.FILL
    queries = q.new_zeros((filled, *q.shape[1:]))
    queries[before : before + count] = q
    own = [_together(each, table, begin, filled, start + count) for each in pages]
    out, lse = _product(queries, own[0], own[1], True, scale)
    for first, last in rules.pieces(begin, page):
        past = [_together(each, table, first, last - first, last) for each in pages]
        out, lse = merge(out, lse, *_product(queries, past[0], past[1], False, scale))
    return out[before : before + count], lse[before : before + count]


def _together(
    pages: torch.Tensor, table: torch.Tensor, begin: int, count: int, end: int
) -> torch.Tensor:
    """[Hkv, count, d] of the tokens from `begin` on, zeros from `end` on: a weight of zero times
    what a former owner left may be NaN.
    """
    size = pages.shape[2]
    ids = table[begin // size : -(-min(begin + count, end) // size)].clamp(min=0)
    held = pages.transpose(0, 1).index_select(1, ids).flatten(1, 2)
    if held.shape[1] < count:
        held = torch.nn.functional.pad(held, (0, 0, 0, count - held.shape[1]))
    held[:, end - begin :].zero_()
    return held


def _product(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """out float32 [L, H, dv] and lse float32 [L, H] of q [L, H, d] over k, v [Hkv, N, d]."""
    found = operator()(
        q.transpose(0, 1)[None], k[None], v[None], None, True, 0.0, causal, False, scale=scale
    )
    heads, rows = q.shape[1], q.shape[0]
    lse = found[1].reshape(heads, rows).transpose(0, 1).contiguous()
    return found[0][0].transpose(0, 1).float().contiguous(), lse
