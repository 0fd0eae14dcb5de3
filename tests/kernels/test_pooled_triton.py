"""Selection by pooled weights in Triton, interpreted, against its reference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from saccade.kernels import triton_sizes
from saccade.kernels.pooled import Entries, PooledRule
from saccade.kernels.pooled import reference as by_torch
from saccade.kernels.pooled import triton as by_triton
from saccade.kernels.select import Candidates
from saccade.kernels.store import RowLayout
from saccade.kernels.summarize import completed_blocks, slots_per_page
from saccade.kernels.summarize import reference as summarize

from .paged import Problem, make

pytestmark = [
    pytest.mark.usefixtures("interpreted"),
    pytest.mark.filterwarnings("ignore:invalid value", "ignore:Conversion of an array"),
]
LENGTHS, CHUNKS = [400, 70, 31, 5], [4, 2, 0, 3]
FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16


def of_rows(**options: Any) -> Problem:
    return make(LENGTHS, CHUNKS, layout_of=RowLayout, **options)


def windows_of(problem: Problem, size: int, stride: int) -> Entries:
    """Every window of all sequences; NaN where nothing belongs."""
    cu = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist()], dtype=torch.int32)
    positions = torch.cat([torch.arange(length) for length in LENGTHS])
    page = problem.layout.page_size
    done = completed_blocks(cu, positions, problem.keys.page_table, size, page, stride)
    shape = (problem.k.shape[0], slots_per_page(stride, page), *problem.k.shape[1::2])
    data = torch.full(shape, torch.nan, dtype=problem.k.dtype)
    summarize.block_means(problem.layout, problem.k, data, done)
    return Entries(data, size, stride)


def candidates_of(problem: Problem, block: int) -> Candidates:
    keys = problem.keys
    size = problem.layout.page_size
    return Candidates(keys.cu_rows, keys.positions, keys.page_table, block, size)


def both(*args: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The lists of the kernels and of the reference."""
    assert by_triton.supports(*args) is None
    return by_triton.select_pooled(*args), by_torch.select_pooled(*args)


@pytest.mark.parametrize(
    ("dtype", "fine", "coarse", "page", "rule"),
    [
        (FP32, (32, 16, 64), None, 64, PooledRule(4, 1, 2)),
        (FP16, (32, 16, 64), (128, 64), 64, PooledRule(5, 1, 1)),
        (BF16, (32, 16, 64), (64, 32), 16, PooledRule(3)),
        (FP16, (64, 32, 128), (256, 128), 64, PooledRule(2, 0, 0)),
        (FP16, (16, 16, 16), None, 64, PooledRule(9, 2, 0, "relu")),
        (BF16, (64, 16, 64), None, 256, PooledRule(30, weight="relu")),
        (FP32, (16, 16, 16), (64, 64), 16, PooledRule(7, 0, 3)),
    ],
    ids=str,
)
def test_lists_of_the_reference(
    dtype: torch.dtype, fine: Any, coarse: Any, page: int, rule: PooledRule
) -> None:
    """Weights of random numbers are not near each other: the same lists. Five heads to an owner."""
    size, stride, block = fine
    problem = of_rows(dtype=dtype, heads=10, page=page, dim=40)
    entries = windows_of(problem, size, stride)
    rough = windows_of(problem, *coarse) if coarse else None
    found, wanted = both(problem.q, entries, candidates_of(problem, block), rule, 40**-0.5, rough)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("weight", ["relu", "probability"])
def test_ties_go_to_the_later_block_and_nan_is_never_chosen(weight: str) -> None:
    """Also a page that is gone, zeros of either sign, and weights of nothing at all."""
    problem = make([640], [4], heads=4, dim=32, layout_of=RowLayout)
    problem.q.round_()
    entries = Entries(torch.ones((problem.k.shape[0], 4, 2, 32)), 32, 16)
    select, page = candidates_of(problem, 64), problem.keys.page_table[0].long()
    rule = PooledRule(4, weight=weight)
    found, wanted = both(problem.q, entries, select, rule, 0.125, None)
    assert torch.equal(found, wanted)
    assert bool((found == torch.tensor([6, 7, 8, 9], dtype=torch.int32)).all())
    # Of block 7 (tokens 448 .. 511) all entries: the first ends in it, the last in the next one.
    entries.data[page[7]] = torch.nan
    entries.data[page[8], 0] = torch.nan
    entries.data[page[1]], entries.data[page[2]] = 0.0, -0.0
    entries.data[page[3], 1] = -torch.inf
    problem.keys.page_table[0, 4] = -1
    for listed in (7, 16):
        found, wanted = both(problem.q, entries, select, replace(rule, listed=listed), 0.125, None)
        assert torch.equal(found, wanted)
        assert 7 not in found.tolist()[0][0]


@pytest.mark.parametrize(("block", "page"), [(4, 16), (32, 16)])
def test_entries_that_are_short_blocks(block: int, page: int) -> None:
    """One head, as indexers have it; exact sums, many equal; lists longer than what there is."""
    problem = of_rows(heads=3, kv_heads=1, page=page, dtype=FP16)
    generator = torch.Generator().manual_seed(5)
    shape = (problem.k.shape[0], max(1, page // block), 1, 32)
    whole = torch.randint(-2, 3, shape, generator=generator).to(FP16)
    entries, select = Entries(whole, block, block), candidates_of(problem, block)
    problem.q.round_()
    for listed in (2, 40):
        found, wanted = both(
            problem.q, entries, select, PooledRule(listed, 0, 0, "relu"), 0.125, None
        )
        assert torch.equal(found, wanted)


def test_a_row_selects_the_same_in_any_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does it matter in how many parts its entries are summed up, if it has one, or in how
    many passes rows go through.
    """
    problem = of_rows(dtype=FP16, heads=6, dim=40)
    fine, coarse = windows_of(problem, 32, 16), windows_of(problem, 128, 64)
    select, rule = candidates_of(problem, 64), PooledRule(4, 1, 1)
    ids = by_triton.select_pooled(problem.q, fine, select, rule, 0.2, coarse)
    monkeypatch.setattr(triton_sizes, "SCORES", 2 * select.page_table.shape[1] * 8 * 4)
    found = by_triton.select_pooled(problem.q, fine, select, rule, 0.2, coarse)
    assert torch.equal(found, ids)
    one = torch.tensor([0, 1], dtype=torch.int32)
    for s, (begin, end) in enumerate(problem.bounds()):
        for row in {begin, end - 1} if begin < end else ():
            place = (problem.keys.positions[row : row + 1], problem.keys.page_table[s : s + 1])
            alone = Candidates(one, *place, 64, 64)
            found = by_triton.select_pooled(
                problem.q[row : row + 1], fine, alone, rule, 0.2, coarse
            )
            assert torch.equal(found[0], ids[row])


@pytest.mark.parametrize("coarse", [None, (128, 64), (256, 64)])
def test_sums_in_parts(coarse: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts of a row's entries together are its sum, whether fine or coarse."""
    monkeypatch.setattr(by_triton, "PART", 8)
    problem = of_rows(heads=4, dim=32, size=2.0)
    fine = windows_of(problem, 32, 16)
    rough = windows_of(problem, *coarse) if coarse else None
    select = candidates_of(problem, 64)
    for rule in (PooledRule(3, 0, 1), PooledRule(5, 0, 0)):
        found, wanted = both(problem.q, fine, select, rule, 0.5, rough)
        assert torch.equal(found, wanted)


def test_what_is_left_to_others() -> None:
    problem = of_rows(dim=32)
    wide = torch.zeros((*problem.q.shape[:2], 512))
    entries = Entries(torch.zeros((problem.k.shape[0], 4, 2, 512)), 32, 16)
    args = (wide, entries, candidates_of(problem, 64), PooledRule(3), 1.0, None)
    assert "256 channels" in str(by_triton.supports(*args))
