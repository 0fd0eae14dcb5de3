"""Before another library's attention is trusted on a machine, it answers a small question: one
whose answer is known. What it gets wrong, or does not take, is the reason not to use it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import torch

from .. import gpu
from ..store import RowLayout, write_pages
from . import dense_rules as rules
from . import reference
from .call import AttendCall
from .keys import Keys

Attend = Callable[[AttendCall], tuple[torch.Tensor, torch.Tensor]]
# (first position, one past the last) of the rows: a chunk that begins inside a page, and a prompt.
SPANS = ((300, 460), (0, 130))
# Of the largest value: rounding of bf16 inputs, probabilities and results.
TOLERANCE = 2e-2


def refusal(
    way: str, attend: Attend, missing: Callable[[], str | None], call: AttendCall
) -> str | None:
    """Why `attend`, which is this way, cannot serve a call; None: it can.

    missing: why the way cannot be used on this machine at all, or None.
    """
    if reason := gpu.library_refusal(call.q):
        return reason
    in_short = rules.call_of(gpu.capability(call.q), call)
    if reason := rules.refusal(way, in_short) or missing():
        return reason
    return failure(attend, way, call)


def failure(attend: Attend, name: str, call: AttendCall) -> str | None:
    """Why `attend`, named so, is not to be used for calls like this; None: it answered well.

    It is asked once in a process for every device, dtype and shape of heads.
    """
    heads = (call.heads, call.kv_heads, call.head_dim, call.v_dim)
    question = _Question(attend, name)
    return _asked(question, call.layout.page_size, heads, call.q.dtype, call.q.device)


class _Question:
    """A way to attend, known by its name: `partial` objects of the same function are not equal."""

    def __init__(self, attend: Attend, name: str) -> None:
        self.attend, self.name = attend, name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Question) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)


@cache
def _asked(
    question: _Question,
    page: int,
    heads: tuple[int, int, int, int],
    dtype: torch.dtype,
    device: torch.device,
) -> str | None:
    with torch.device("cpu"):  # whatever device the caller makes tensors on
        call = _problem(page, heads, dtype)
        q, k, v = (each.float() for each in (call.q, call.k_pages, call.v_pages))
        truth, truth_lse = reference.attend(
            call._replace(q=q, k_pages=k, v_pages=v, out_dtype=torch.float32)
        )
    try:
        out, lse = question.attend(_on(device, call))
        if out.shape != truth.shape or lse.shape != truth_lse.shape:
            return f"its answer to a test is {tuple(out.shape)}, {tuple(lse.shape)}"
        wrong = float((out.cpu().float() - truth).abs().max() / truth.abs().max())
        wrong = max(wrong, float((lse.cpu() - truth_lse).abs().max()) / 10)
    except Exception as error:  # noqa: BLE001 - a foreign library fails in many ways
        return f"it failed a test: {type(error).__name__}: {str(error).splitlines()[:1]}"
    return None if wrong <= TOLERANCE else f"its answer to a test is wrong by {wrong:.1e}"


def _on(device: torch.device, call: AttendCall) -> AttendCall:
    """The call with its tensors there."""
    q, k, v = (each.to(device) for each in (call.q, call.k_pages, call.v_pages))
    keys = replace(
        call.keys,
        cu_rows=call.keys.cu_rows.to(device),
        positions=call.keys.positions.to(device),
        page_table=call.keys.page_table.to(device),
    )
    return call._replace(q=q, k_pages=k, v_pages=v, keys=keys)


def _problem(page: int, heads: tuple[int, int, int, int], dtype: torch.dtype) -> AttendCall:
    """Two sequences in shuffled pages, on the host. Pages that nobody owns hold NaN."""
    generator = torch.Generator("cpu").manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    q_heads, kv_heads, dim, v_dim = heads
    layout, counts = RowLayout(page), [-(-stop // page) for _, stop in SPANS]
    k, v = layout.allocate(sum(counts) + 1, kv_heads, dim, v_dim, dtype, "cpu")
    k.fill_(torch.nan)
    v.fill_(torch.nan)
    order = torch.randperm(sum(counts), generator=generator).int() + 1
    table = torch.full((2, max(counts)), -1, dtype=torch.int32)
    for s, (_, stop) in enumerate(SPANS):
        table[s, : counts[s]] = order[sum(counts[:s]) : sum(counts[: s + 1])]
        at = torch.arange(stop)
        slots = table[s].long()[at // page] * page + at % page
        write_pages(layout, k, v, normal(stop, kv_heads, dim), normal(stop, kv_heads, v_dim), slots)
    rows = [stop - start for start, stop in SPANS]
    positions = torch.cat([torch.arange(a, b) for a, b in SPANS])
    cu = torch.tensor([0, rows[0], sum(rows)], dtype=torch.int32)
    keys = Keys(cu, positions, table, spans=SPANS)
    return AttendCall(layout, normal(sum(rows), q_heads, dim), k, v, keys, dim**-0.5, dtype)
