"""Before another library's attention is trusted on a machine, it answers a small question: one
whose answer is known. What it gets wrong, or does not take, is the reason not to use it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import torch

from .. import gpu
from ..store import PageLayout, RowLayout, write_pages
from . import dense_rules as rules
from . import reference
from .keys import Keys

Attend = Callable[..., tuple[torch.Tensor, torch.Tensor]]
# (first position, one past the last) of the rows: a chunk that begins inside a page, and a prompt.
SPANS = ((300, 460), (0, 130))
# Of the largest value: rounding of bf16 inputs, probabilities and results.
TOLERANCE = 2e-2


def refusal(
    way: str,
    attend: Attend,
    missing: Callable[[], str | None],
    layout: PageLayout,
    q: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    keys: Keys,
    softcap: float | None,
    sink_logits: torch.Tensor | None,
    out_dtype: torch.dtype,
    value_dim: int | None,
) -> str | None:
    """Why `attend`, which is this way, cannot serve a call; None: it can.

    missing: why the way cannot be used on this machine at all, or None.
    """
    if reason := gpu.library_refusal(q):
        return reason
    call = rules.call_of(
        gpu.capability(q), layout, q, k_pages, v_pages, keys, softcap, sink_logits, out_dtype,
        value_dim,
    )  # fmt: skip
    if reason := rules.refusal(way, call) or missing():
        return reason
    return failure(attend, way, layout, q, k_pages, v_pages)


def failure(
    attend: Attend,
    name: str,
    layout: PageLayout,
    q: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
) -> str | None:
    """Why `attend`, named so, is not to be used for calls like this; None: it answered well.

    It is asked once in a process for every device, dtype and shape of heads.
    """
    heads = (q.shape[1], k_pages.shape[1], q.shape[2], v_pages.shape[3])
    return _asked(_Question(attend, name), layout.page_size, heads, q.dtype, q.device)


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
    scale = heads[2] ** -0.5
    with torch.device("cpu"):  # whatever device the caller makes tensors on
        layout, q, k, v, keys = _problem(page, heads, dtype)
        truth, truth_lse = reference.attend(
            layout, q.float(), k.float(), v.float(), keys, scale, None, None, torch.float32
        )
    there = replace(
        keys,
        cu_rows=keys.cu_rows.to(device),
        positions=keys.positions.to(device),
        page_table=keys.page_table.to(device),
    )
    try:
        out, lse = question.attend(
            layout, q.to(device), k.to(device), v.to(device), there, scale, None, None, dtype, None
        )
        if out.shape != truth.shape or lse.shape != truth_lse.shape:
            return f"its answer to a test is {tuple(out.shape)}, {tuple(lse.shape)}"
        wrong = float((out.cpu().float() - truth).abs().max() / truth.abs().max())
        wrong = max(wrong, float((lse.cpu() - truth_lse).abs().max()) / 10)
    except Exception as error:  # noqa: BLE001 - a foreign library fails in many ways
        return f"it failed a test: {type(error).__name__}: {str(error).splitlines()[:1]}"
    return None if wrong <= TOLERANCE else f"its answer to a test is wrong by {wrong:.1e}"


def _problem(
    page: int, heads: tuple[int, int, int, int], dtype: torch.dtype
) -> tuple[RowLayout, torch.Tensor, torch.Tensor, torch.Tensor, Keys]:
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
    return layout, normal(sum(rows), q_heads, dim), k, v, Keys(cu, positions, table, spans=SPANS)
