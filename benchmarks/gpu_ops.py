"""Checks of the GPU path: every op but `attend`, in every dtype and by every implementation that
serves it there, against its reference in fp64 on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from ..engine.devices import moved
from ..kernels import gpu
from ..kernels.activation import SIGMOID_MUL, SILU_MUL, SWIGLU
from ..kernels.bounds import KEY_BOUNDS, SELECT_BOUNDED
from ..kernels.bounds import reference as bounds_reference
from ..kernels.compressed import COMPRESSED, CompressedCall, ListRule, Spans
from ..kernels.correct import CORRECT
from ..kernels.experts import EXPERTS, ExpertWeights
from ..kernels.first import SCALE_FIRST, FirstCall
from ..kernels.gate import GATED_SUM
from ..kernels.gated_delta import GATED_DELTA, DeltaCall, Walk
from ..kernels.key_conv import KEY_CONV
from ..kernels.linear import PackedHeads
from ..kernels.merge import MERGE
from ..kernels.moments import FAR_MASS, KEY_MOMENTS, KINDS, MomentRule, moment_blocks
from ..kernels.moments import reference as moments_reference
from ..kernels.norm import RMS_NORM
from ..kernels.ops import Op
from ..kernels.pooled import SELECT_POOLED, Entries, PooledRule
from ..kernels.rope import APPLY_ROPE
from ..kernels.select import SELECT_BLOCKS, Candidates
from ..kernels.select_keys import SELECT_KEYS, KeyRule
from ..kernels.store import WRITE_PAGES, WriteCall
from ..kernels.summarize import BLOCK_MEANS, WINDOW_MEANS, completed_blocks, slots_per_page
from ..kernels.summarize import reference as means_reference
from ..kernels.testing import error
from .gpu_kept import kept_cases
from .gpu_rows import NOT_MEASURED, Pages, Row, attempted, dtypes, pages

# Of the rows of lists: scores that are nearly equal may be ranked either way.
LISTS_BOUND = 0.01
BLOCK = 32
Case = tuple[str, Op, tuple[Any, ...]]


def op_rows(tiny: bool) -> Iterator[Row]:
    """A row for every op, implementation and dtype."""
    for dtype, bound in dtypes().items():
        cases = (_rowwise, _paged, _far, kept_cases, _layers)
        for name, op, args in (case for each in cases for case in each(tiny, dtype)):
            yield from _checked(f"{name} {str(dtype)[6:]}", op, args, bound)


def _checked(case: str, op: Op, args: tuple[Any, ...], bound: float) -> Iterator[Row]:
    """The op's implementations for GPUs, one after the other, each with tensors of its own."""
    exact = _as(args, lambda each: each.double() if each.is_floating_point() else each.clone())
    truth = _results(op.reference, exact)
    device = gpu.device()
    for each in op.implementations:
        if each.name == "cpu":
            continue
        mine = _as(args, lambda tensor: tensor.to(device, copy=True))
        name = f"{each.name} {case}"
        if reason := each.supports(*mine):
            yield Row("ops", name, NOT_MEASURED, reason)
            continue
        yield attempted("ops", name, partial(_compared, name, each.run, mine, truth, bound))


def _compared(
    name: str,
    run: Callable[..., Any],
    args: tuple[Any, ...],
    truth: list[torch.Tensor],
    bound: float,
) -> Row:
    found = _results(run, args)
    wrong = max((_error(a.cpu(), b) for a, b in zip(found, truth, strict=True)), default=0.0)
    return Row("ops", name, f"error {wrong:.1e} of {bound:.0e}", failed=not wrong <= bound)


def _as(args: tuple[Any, ...], move: Callable[[torch.Tensor], torch.Tensor]) -> tuple[Any, ...]:
    return tuple(moved(args, move, {}))


def _results(run: Callable[..., Any], args: tuple[Any, ...]) -> list[torch.Tensor]:
    """What it returns, and its arguments, which it may have changed."""
    return [*_tensors(run(*args)), *_tensors(args)]


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """Those in a tensor or in nested tuples, a call's among them."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple):
        for each in value:
            yield from _tensors(each)


def _error(found: torch.Tensor, truth: torch.Tensor) -> float:
    """Of the largest number; of lists, the share of rows that differ, in bounds of numbers."""
    if not found.is_floating_point():
        differ = (found != truth).reshape(found.shape[0], -1).any(1) if found.numel() else found
        share = float(differ.double().mean()) if differ.numel() else 0.0
        return 0.0 if share <= LISTS_BOUND else float("inf")
    found, truth = found.double(), truth.double()
    alike = (found == truth) | (found.isfinite() & truth.isfinite())
    if not bool((alike | (found.isnan() & truth.isnan())).all()):
        return float("inf")
    known = truth.nan_to_num(0.0, 0.0, 0.0)
    return error(found.nan_to_num(0.0, 0.0, 0.0), known) / max(float(known.abs().max()), 1e-30)


def _rowwise(tiny: bool, dtype: torch.dtype) -> list[Case]:
    """Ops that take row by row."""
    rows, heads, dim, width = (3, 2, 16, 40) if tiny else (257, 8, 128, 4096)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape).to(dtype)

    angles, lse = torch.randn(rows, dim // 2), torch.randn(2, rows, heads)
    out, table = torch.randn(rows, heads, dim), torch.randn(rows, heads, dim)
    source = torch.randint(0, rows + 1, (rows,))
    halves, first = tuple(normal(3, rows, heads, dim)), normal(2, 1, heads, dim)
    cu, gains = torch.tensor([0, rows]).int(), torch.rand(heads) + 1.0
    return [
        ("norm", RMS_NORM, (normal(rows, width), normal(width), 1e-5, normal(rows, width), 0.0)),
        (
            "rope",
            APPLY_ROPE,
            (normal(rows, heads, dim), normal(rows, 1, dim), angles.cos(), angles.sin()),
        ),
        ("silu_mul", SILU_MUL, (normal(rows, width),)),
        ("swiglu", SWIGLU, (normal(rows, width), 1.7, 7.0)),
        ("sigmoid_mul", SIGMOID_MUL, (normal(rows, width), normal(rows, width // 8))),
        ("merge", MERGE, (normal(rows, heads, dim), lse[0], normal(rows, heads, dim), lse[1])),
        ("gated_sum", GATED_SUM, (halves, torch.rand(rows, heads, 3))),
        ("correct", CORRECT, (out, lse[0], table, lse[1], source, dtype)),
        (
            "scale_first",
            SCALE_FIRST,
            (FirstCall(normal(rows, heads, dim), out, lse[0] + 5.0, *first, cu, gains, dim**-0.5),),
        ),
    ]


def _paged(tiny: bool, dtype: torch.dtype) -> list[Case]:
    """Ops that read or write pages."""
    lengths, rows = ([70, 33], [3, 1]) if tiny else ([2048, 700, 1], [256, 1, 1])
    heads = (2, 1) if tiny else (16, 4)
    held = pages(lengths, rows, heads, 64, dtype, torch.device("cpu"))
    keys, page = held.keys, held.layout.page_size
    cu = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    every = torch.cat([torch.arange(length) for length in lengths])
    done = completed_blocks(cu, every, keys.page_table, BLOCK, page)
    windows = completed_blocks(cu, every, keys.page_table, BLOCK, page, BLOCK // 2)
    means = _field(held, slots_per_page(BLOCK, page), 64)
    both = _field(held, slots_per_page(BLOCK // 2, page, least=1), 128)
    known, entries = means.clone(), both.clone()
    means_reference.block_means(held.layout, held.k, known, done)
    means_reference.window_means(held.layout, held.k, held.v, entries, windows)
    extremes = torch.stack([means, means], dim=3)
    bounds = extremes.clone()
    bounds_reference.key_bounds(held.layout, held.k, bounds, done)
    candidates = Candidates(keys.cu_rows, keys.positions, keys.page_table, BLOCK, page)
    lse = torch.zeros(held.q.shape[:2])
    spans, rule = Spans(BLOCK, BLOCK // 2), ListRule(4, 1, 1)
    new = torch.randn(2, 5, heads[1], 64).to(dtype)
    slots = torch.tensor([0, 1, 2 * page - 1, -1, page])
    return [
        ("block_means", BLOCK_MEANS, (held.layout, held.k, means, done)),
        ("window_means", WINDOW_MEANS, (held.layout, held.k, held.v, both, windows)),
        ("key_bounds", KEY_BOUNDS, (held.layout, held.k, extremes, done)),
        ("select_bounded", SELECT_BOUNDED, (held.q, bounds, candidates, rule, "max")),
        (
            "select_keys",
            SELECT_KEYS,
            (held.layout, held.q, held.k, candidates, KeyRule(4, 1, 1), 64**-0.5, lse),
        ),
        ("select_blocks", SELECT_BLOCKS, (held.q, known, candidates, 3)),
        (
            "compressed",
            COMPRESSED,
            (CompressedCall(held.q, entries, candidates, rule, 64**-0.5, 64, spans, 64),),
        ),
        ("write_pages", WRITE_PAGES, (WriteCall(held.layout, held.k, held.v, *new, slots),)),
    ]


def _far(tiny: bool, dtype: torch.dtype) -> list[Case]:
    """Ops that judge far keys by summaries: pooled weights, and moments."""
    lengths, rows = ([140, 50], [3, 1]) if tiny else ([2048, 700, 60], [256, 1, 1])
    held = pages(lengths, rows, (2, 1) if tiny else (16, 4), 64, dtype, torch.device("cpu"))
    keys, page = held.keys, held.layout.page_size
    cu = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    place = (cu, torch.cat([torch.arange(length) for length in lengths]), keys.page_table)
    candidates = Candidates(keys.cu_rows, keys.positions, keys.page_table, BLOCK, page)
    means = _field(held, slots_per_page(BLOCK // 2, page), 64)
    windows = completed_blocks(*place, BLOCK, page, BLOCK // 2)
    means_reference.block_means(held.layout, held.k, means, windows)
    fine, pooled = Entries(means, BLOCK, BLOCK // 2), PooledRule(3, 1, 1)
    cases: list[Case] = [
        ("select_pooled", SELECT_POOLED, (held.q, fine, candidates, pooled, 64**-0.5, None))
    ]
    for kind in KINDS:
        rule, done = MomentRule(kind, BLOCK, 5), moment_blocks(*place, BLOCK)
        slots, vectors = slots_per_page(BLOCK, page), rule.entry_rows(64)
        empty = torch.zeros((held.k.shape[0], slots, held.k.shape[1], vectors, 64))
        known = empty.clone()
        moments_reference.key_moments(held.layout, held.k, known, done, rule)
        mass = (held.q, known, candidates, rule, kind, BLOCK, 64**-0.5)
        cases.append((f"key_moments {kind}", KEY_MOMENTS, (held.layout, held.k, empty, done, rule)))
        cases.append((f"far_mass {kind}", FAR_MASS, mass))
    return cases


def _layers(tiny: bool, dtype: torch.dtype) -> list[Case]:
    """Layers that do not attend: experts, of prompts and of single rows, and recurrent ones."""
    rows, count, wide, inner = (6, 5, 48, 24) if tiny else (512, 32, 1024, 256)
    heads, dim = (2, 16) if tiny else (8, 128)

    def normal(*shape: int, size: float = 1.0) -> torch.Tensor:
        return (torch.randn(shape) * size).to(dtype)

    gate_up = PackedHeads(normal(count, 2 * inner, wide, size=wide**-0.5), wide, 2 * inner)
    down = PackedHeads(normal(count, wide, inner, size=inner**-0.5), inner, wide)
    chosen, shares = torch.rand(rows, count).argsort(1)[:, :2].contiguous(), torch.rand(rows, 2)
    x, kinds = normal(rows, wide), (("silu", None, rows), ("swiglu", (1.7, 7.0), 1))
    cases: list[Case] = [
        (f"experts {name}", EXPERTS, (x[:n], chosen[:n], shares[:n], weights))
        for name, swiglu, n in kinds
        for weights in (ExpertWeights(gate_up, down, swiglu),)
    ]
    key, gates, store = normal(2, rows, heads, dim), torch.rand(2, rows, heads), [-1] * rows
    store[rows // 2 - 1], store[-1] = 0, 1
    walk = Walk(
        *(torch.tensor(each) for each in ([0, rows // 2, rows], [*range(rows)], [-1, 2], store))
    )
    states = torch.randn(3, heads, dim, dim)
    rule = DeltaCall(*key, normal(rows, heads, dim), *gates, states, walk)
    back = torch.arange(rows)[:, None] - torch.arange(1, 4)
    before = torch.where(back < -2, -1, torch.where(back < 0, back - 1, back))
    convolution = (key[1], normal(2, heads, dim), before, normal(4, heads, dim), True)
    return [
        *cases,
        ("gated_delta", GATED_DELTA, (rule,)),
        ("key_conv", KEY_CONV, convolution),
    ]


def _field(held: Pages, slots: int, width: int) -> torch.Tensor:
    """A page field of zeros."""
    return torch.zeros((held.k.shape[0], slots, held.k.shape[1], width), dtype=held.k.dtype)
