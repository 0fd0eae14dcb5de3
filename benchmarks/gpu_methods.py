"""Timings on the GPU of one layer of the engine's methods, as the engine calls them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ..engine.attention.base import Aux, LayerCache, LayerShape, Step
from ..engine.attention.parse import parse_method
from ..engine.branches import BranchShape
from ..engine.devices import Place, Staging
from ..kernels import gpu
from .gpu_rows import NOT_MEASURED, Pages, Row, pages, reason_of
from .gpu_times import DIM, HEADS, captured, timed

MOBA, FINE_MOBA = "moba(512, 8)", "moba(128, 8)"
NSA = "nsa(32, 16, topk=16, block=64, window=512, kv=shared, phi=mean)"
DELTA = "delta(window=2048, sinks=64, gamma=64)"
QUEST = "quest(budget=2048)"
PREFILL = (MOBA, FINE_MOBA, NSA, DELTA)
DECODE = (MOBA, FINE_MOBA, NSA, QUEST)
TINY = ("moba(16, 2)", "nsa(8, 4, topk=4, block=16, window=9, kv=shared, phi=mean)")
# FlashMoBA's (arXiv 2511.11571): two prompts of 64K tokens, 16 heads of 128 channels, each with
# keys of its own.
PUBLISHED = "published point"


def method_prefill(length: int, tiny: bool) -> Iterator[Row]:
    """A whole prompt, by every method: its summaries are made, and all rows attend."""
    for spec in TINY if tiny else PREFILL:
        yield _row(f"prefill {length}", spec, [length], [length], tiny)


def method_decode(length: int, batch: int, tiny: bool) -> Iterator[Row]:
    """One token of `batch` sequences; the summaries of what was before are there."""
    for spec in TINY if tiny else DECODE:
        yield _row(f"decode {length} b={batch}", spec, [length] * batch, [1] * batch, tiny)


def published_point(tiny: bool) -> Iterator[Row]:
    """MoBA as FlashMoBA's authors timed theirs, which took 49 ms on an H100."""
    spec, length, heads = (TINY[0], 24, 2) if tiny else (FINE_MOBA, 65536, 16)
    yield _row(PUBLISHED, spec, [length] * 2, [length] * 2, tiny, (heads, heads))


def _row(
    section: str,
    spec: str,
    lengths: list[int],
    rows: list[int],
    tiny: bool,
    heads: tuple[int, int] | None = None,
) -> Row:
    own, dim = ((2, 1), 32) if tiny else (HEADS, DIM)
    one = lengths != rows
    try:
        held = pages(lengths, rows, heads or own, dim, torch.bfloat16, gpu.device())
        layer = _Layer(spec, held)
        call = captured(layer, tiny) if one else layer
    except Exception as error:  # noqa: BLE001 - e.g. a capture that fails, or memory
        return Row(section, spec, NOT_MEASURED, reason_of(error), failed=True)
    return timed(section, spec, call, tiny, cold=one)


class _Layer:
    """A call is one layer's attention by one method. Where all tokens ask, it makes the summaries
    too; where the last ones do, these are there.
    """

    def __init__(self, spec: str, held: Pages) -> None:
        self._method = parse_method(spec)
        heads, kv_heads, dim = held.q.shape[1], held.k.shape[1], held.q.shape[2]
        self._shape = LayerShape(heads, kv_heads, dim, dim, dim**-0.5, branches=BranchShape())
        size = held.layout.page_size
        fields = {
            name: torch.zeros(
                (held.k.shape[0], *each.shape),
                dtype=each.dtype or held.k.dtype,
                device=held.k.device,
            )
            for name, each in self._method.fields(self._shape, size).items()
        }
        self._cache = LayerCache(0, held.layout, held.k, held.v, fields)
        self._q = held.q
        rows = held.q.shape[0]
        gates = torch.rand((rows, heads, 3), device=held.q.device)
        self._aux = Aux(rows={"gates": gates})
        whole = _step(held, whole=True)
        self._summed = self._sent(whole)
        self._method.summarize(self._cache, *self._summed, self._aux)
        self._step, self._plan = self._sent(_step(held, whole=False))
        self._summarizes = rows == whole.positions.shape[0]

    def _sent(self, step: Step) -> tuple[Step, Any]:
        """A step and its plan, made on the host, on the device."""
        device = gpu.device()
        plan = self._method.plan(self._shape, step)
        staging = Staging(Place(device, gpu=True), torch.nn.Module())
        (step, plan), _, _ = staging.send((step, plan))
        return step, plan

    def __call__(self) -> torch.Tensor:
        """[T, H, d]"""
        if self._summarizes:
            self._method.summarize(self._cache, *self._summed, self._aux)
        return self._method.attend(
            self._shape, self._cache, self._step, self._plan, self._q, self._aux
        )


def _step(held: Pages, whole: bool) -> Step:
    """The rows that ask, or all tokens, as the engine's step has them on the host."""
    spans = tuple((0, stop) for _, stop in held.spans) if whole else held.spans
    counts = torch.tensor([stop - start for start, stop in spans])
    cu = torch.zeros(len(spans) + 1, dtype=torch.int32)
    cu[1:] = counts.cumsum(0)
    positions = torch.cat([torch.arange(*span) for span in spans])
    table, size = held.keys.page_table.cpu(), held.layout.page_size
    sequence = torch.repeat_interleave(torch.arange(len(spans)), counts)
    slots = table[sequence, positions // size].long() * size + positions % size
    prompts = torch.tensor([stop for _, stop in spans])
    rows = slice(0, len(positions))
    return Step(cu, positions, slots, table, prompts, rows, size, spans=spans)
