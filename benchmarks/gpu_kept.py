"""Calls of what expert-choice heads need on a GPU: choosing, projecting and attending."""

from __future__ import annotations

from typing import Any

import torch

from ..kernels.attend import Keys
from ..kernels.chosen import ADD_CHOSEN, PROJECT_CHOSEN
from ..kernels.keep import (
    KEEP_ABOVE,
    KEEP_BEST,
    KEEP_TOP,
    KeptCounts,
    KeptState,
    ListRoom,
)
from ..kernels.linear import PackedHeads
from ..kernels.ops import Op
from ..kernels.store import RowLayout
from ..kernels.turns import ATTEND_TURNS, TurnsCall

PAGE = 64
Case = tuple[str, Op, tuple[Any, ...]]


def kept_cases(tiny: bool, dtype: torch.dtype) -> list[Case]:
    """Of every rule, once, in fp32, as scores are; and of what follows, in this dtype."""
    found = [*_chosen(tiny, dtype), _turns(tiny, dtype)]
    return [*_rules(tiny), *found] if dtype == torch.float16 else found


def _rules(tiny: bool) -> list[Case]:
    """Two sequences, of several rows and of one; whole texts for `keep_top`."""
    starts, counts, heads = ((9, 70), (20, 1), 2) if tiny else ((900, 4000), (2000, 1), 16)
    positions = torch.cat(
        [torch.arange(start, start + count) for start, count in zip(starts, counts, strict=True)]
    )
    scores = torch.rand(sum(counts), heads)
    room = _room(counts, positions)
    width = -(-max(start + count for start, count in zip(starts, counts, strict=True)) // PAGE)
    table = torch.randperm(2 * width).int().view(2, width)
    counted = KeptCounts(
        torch.randint(0, 2, (2 * width, PAGE, heads)).to(torch.uint8),
        torch.zeros((2 * width, heads), dtype=torch.int32),
        table,
    )
    shape = (2 * width, heads, PAGE)
    places = torch.arange(2 * width * PAGE).view(-1, 1, PAGE).expand(shape)
    state = KeptState(torch.rand(shape), places.int().contiguous(), table)
    texts = _room(counts, torch.cat([torch.arange(count) for count in counts]))
    return [
        ("keep_above", KEEP_ABOVE, (scores, torch.full((heads,), 0.8), counted, room)),
        ("keep_best", KEEP_BEST, (scores, state, room)),
        ("keep_top", KEEP_TOP, (scores, texts)),
    ]


def _room(counts: tuple[int, ...], positions: torch.Tensor) -> ListRoom:
    """Lists of a quarter of the tokens, at least of two."""
    most = [
        torch.minimum(tokens, (tokens // 4).clamp(min=2)).int()
        for tokens in (positions, positions + 1)
    ]
    cu_rows = torch.tensor([0, *counts]).cumsum(0).int()
    return ListRoom(cu_rows, positions, *most, True)


def _chosen(tiny: bool, dtype: torch.dtype) -> list[Case]:
    """Heads of which one chose none of the rows."""
    heads, rows, hidden, dim = (3, 5, 80, 16) if tiny else (16, 64, 4096, 128)
    chosen = torch.rand(heads, rows) < 0.2
    chosen[0], chosen[1, 0] = False, True

    def weight(outputs: int, inputs: int) -> PackedHeads:
        data = torch.randn(heads, outputs, inputs) / inputs**0.5
        return PackedHeads(data.to(dtype), inputs, outputs)

    x, y = torch.randn(rows, hidden).to(dtype), torch.randn(heads, rows, dim).to(dtype)
    total = torch.randn(rows, hidden)
    return [
        ("project_chosen", PROJECT_CHOSEN, (x, weight(3 * dim, hidden), chosen)),
        ("add_chosen", ADD_CHOSEN, (total, y, weight(hidden, dim), chosen)),
    ]


def _turns(tiny: bool, dtype: torch.dtype) -> Case:
    """Lists of a page and a half that rows append to, and then replace."""
    lists, rows, dim = (2, 9, 16) if tiny else (16, 200, 128)
    length, layout = PAGE + PAGE // 2, RowLayout(PAGE)
    appended = rows // 3
    width = -(-(length + appended) // PAGE)
    pages = layout.allocate(lists * width, 1, dim, dim, dtype)
    for each in pages:
        each.normal_()
    table = torch.randperm(lists * width).int().view(lists, width)
    new = length + torch.arange(appended)
    at = torch.stack(
        [torch.cat([new, torch.randint(0, length, (rows - appended,))]) for _ in range(lists)]
    )
    slots = table.long().gather(1, at // PAGE) * PAGE + at % PAGE
    hi = (length + 1 + torch.arange(rows)).clamp(max=length + appended).int().repeat(lists)
    replaces = (torch.arange(rows) >= appended).repeat(lists)
    cu_rows = (torch.arange(lists + 1) * rows).int()
    keys = Keys(cu_rows, torch.full((lists * rows,), 10**6), table, hi=hi)
    q, k, v = torch.randn(3, lists * rows, 1, dim).to(dtype)
    call = TurnsCall(layout, (q, k, v), pages, keys, slots.flatten(), replaces, dim**-0.5)
    return "attend_turns", ATTEND_TURNS, (call,)
