"""Key bounds and selection by them in Triton, interpreted, against their references."""

from __future__ import annotations

import pytest
import torch

from saccade.kernels import triton_sizes
from saccade.kernels.bounds import reference, select_bounded, triton
from saccade.kernels.compressed import ListRule
from saccade.kernels.select import Candidates
from saccade.kernels.store import PageLayout
from saccade.kernels.summarize import slots_per_page

from .paged import Problem
from .test_ranking_triton import candidates_of, completed, every_dtype, of_rows

pytestmark = [
    pytest.mark.usefixtures("interpreted"),
    pytest.mark.filterwarnings("ignore:invalid value", "ignore:Conversion of an array"),
]
GEOMETRY = [(16, 64), (64, 64), (128, 64), (64, 16)]


def field(problem: Problem, block: int) -> torch.Tensor:
    """A page field of NaN."""
    pages, kv_heads = problem.k.shape[:2]
    slots = slots_per_page(block, problem.layout.page_size)
    shape = (pages, slots, kv_heads, 2, problem.q.shape[2])
    return torch.full(shape, torch.nan, dtype=problem.k.dtype)


def bounds_of(problem: Problem, block: int) -> torch.Tensor:
    bounds = field(problem, block)
    reference.key_bounds(problem.layout, problem.k, bounds, completed(problem, block))
    return bounds


def whole_numbers(problem: Problem) -> Problem:
    """Of few bits: bounds are exact in any order, and many of them equal."""
    problem.q.mul_(2).round_()
    problem.k.copy_((problem.k.nan_to_num() * 2).round())
    return problem


def both(
    problem: Problem,
    bounds: torch.Tensor,
    block: int,
    rule: ListRule,
    reduction: str = "max",
    candidates: Candidates | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Lists of the kernels and of the reference."""
    call = (problem.q, bounds, candidates or candidates_of(problem, block), rule, reduction)
    assert triton.selects(*call) is None
    return triton.select_bounded(*call), reference.select_bounded(*call)


@every_dtype
@pytest.mark.parametrize(("block", "page"), GEOMETRY)
def test_bounds_are_the_extreme_keys(dtype, block, page):
    """Keys' own numbers, bit for bit; a NaN stays, in both bounds of its channel."""
    problem = of_rows(dtype=dtype, page=page, dim=40, kv_heads=3, heads=3)
    problem.k[problem.keys.page_table[0, 1].long(), 1, 3, 17] = torch.nan
    bounds, done = field(problem, block), completed(problem, block)
    wanted = bounds.clone()
    assert triton.supports(problem.layout, problem.k, bounds, done) is None
    triton.key_bounds(problem.layout, problem.k, bounds, done)
    reference.key_bounds(problem.layout, problem.k, wanted, done)
    assert torch.equal(bounds.isnan(), wanted.isnan())
    assert torch.equal(bounds.nan_to_num(), wanted.nan_to_num())
    assert int((~wanted.isnan()).flatten(2).any(-1).sum()) == done.home.numel()


@pytest.mark.parametrize(
    ("dtype", "block", "page", "reduction"),
    [
        (torch.float16, 16, 64, "max"),
        (torch.bfloat16, 16, 64, "sum"),
        (torch.float32, 64, 64, "sum"),
        (torch.float16, 128, 64, "max"),
        (torch.bfloat16, 64, 16, "max"),
    ],
    ids=str,
)
def test_selection(dtype, block, page, reduction):
    """Ragged rows on both sides of a block's border, three query heads of a KV head, lists of
    every width. Many bounds are equal: the later block wins.
    """
    problem = whole_numbers(of_rows((2, 1, 1), dtype=dtype, page=page, heads=6, dim=40))
    problem.keys.positions[0] = 4 * block - 1 if block < 128 else 383
    problem.keys.positions[1] = problem.keys.positions[0] + 1
    bounds = bounds_of(problem, block)
    for rule in (ListRule(1), ListRule(4), ListRule(6, 2, 3), ListRule(200)):
        found, wanted = both(problem, bounds, block, rule, reduction)
        assert torch.equal(found, wanted)


@every_dtype
def test_random_numbers_choose_by_their_bounds(dtype):
    """Sums are rounded: what is chosen has bounds no lower than what is left, but for a margin."""
    problem = of_rows((3, 1, 1), dtype=dtype, heads=6, dim=48)
    bounds, candidates = bounds_of(problem, 16), candidates_of(problem, 16)
    found, wanted = both(problem, bounds, 16, ListRule(5))
    truth = reference.upper_bounds(problem.q, bounds, candidates, 0, 31)[:3]
    truth = truth.unflatten(1, (2, 3)).amax(2).nan_to_num(-torch.inf)
    for row in range(3):
        for head in range(2):
            mine, theirs = ({*each[row, head].tolist()} for each in (found, wanted))
            scores = truth[row, head]
            for a, b in zip(sorted(mine - theirs), sorted(theirs - mine), strict=True):
                assert abs(float(scores[a] - scores[b])) < 1e-3
    assert torch.equal(found[3:], wanted[3:])


@pytest.mark.parametrize("reduction", ["max", "sum"])
def test_ties_go_to_the_later_block_and_nan_is_never_chosen(reduction):
    """Also infinities, a bound that is NaN for one head alone, and a page that is gone."""
    problem = of_rows((4, 1, 1), heads=3, kv_heads=1, dim=16)
    problem.q[:] = 1.0
    problem.q[:, 1] = -1.0
    problem.q[:, 2, 0] = 0.0
    bounds, pages = bounds_of(problem, 16), problem.keys.page_table[0].long()
    bounds[:] = 0.5
    bounds[pages[1], 1] = torch.nan
    bounds[pages[2], 2, 0, 1] = torch.inf  # times zero for the head that asks for the least
    bounds[pages[3], 0, 0, 0, 3] = -torch.inf
    bounds[pages[3], 1, 0, 0, 0] = torch.inf
    bounds[pages[3], 3, 0, :, 5] = -torch.inf
    problem.keys.page_table[0, 4] = -1
    for rule in (ListRule(3), ListRule(12, 2, 2), ListRule(40)):
        found, wanted = both(problem, bounds, 16, rule, reduction)
        assert torch.equal(found, wanted)


def test_a_row_selects_the_same_in_any_pass_and_any_batch(monkeypatch):
    """Rows whose scores have no room together go one after the other."""
    problem = of_rows((3, 1, 1), dtype=torch.float16)
    bounds, candidates = bounds_of(problem, 16), candidates_of(problem, 16)
    call = (bounds, candidates, ListRule(4), "max")
    whole = triton.select_bounded(problem.q, *call)
    per_row = 4 * 2 * candidates.blocks
    monkeypatch.setattr(triton_sizes, "SCORES", 2 * per_row)
    assert torch.equal(triton.select_bounded(problem.q, *call), whole)
    keys, one = problem.keys, torch.tensor([0, 1], dtype=torch.int32)
    for row, sequence in ((1, 0), (3, 1), (4, 2)):
        at = slice(row, row + 1)
        table = keys.page_table[sequence : sequence + 1]
        alone = Candidates(one, keys.positions[at], table, 16, 64)
        found = triton.select_bounded(problem.q[at], bounds, alone, ListRule(4), "max")
        assert torch.equal(found[0], whole[row])


def test_the_op_takes_the_kernels():
    """Strided queries, twenty heads of a KV head; no rows."""
    problem = whole_numbers(of_rows((1, 1, 1), heads=40, kv_heads=2, dim=32))
    bounds, candidates = bounds_of(problem, 64), candidates_of(problem, 64)
    strided = torch.randn(3, 40, 64)[..., :32]
    strided.copy_(problem.q)
    found = select_bounded(strided, bounds, candidates, ListRule(4))
    assert torch.equal(found, both(problem, bounds, 64, ListRule(4))[1])
    none = Candidates(torch.zeros(4).int(), torch.zeros(0).long(), problem.keys.page_table, 64, 64)
    assert select_bounded(strided[:0], bounds, none, ListRule(4)).shape == (0, 2, 4)


def test_what_is_left_to_others():
    problem, rule = of_rows(), ListRule(3)
    done, candidates = completed(problem, 64), candidates_of(problem, 64)
    wide = torch.zeros(10, 4, 300)
    assert "256" in triton.selects(wide, field(problem, 64), candidates, rule, "max")
    bounds = field(problem, 64)
    refusals = (
        triton.supports(PageLayout(64), problem.k, bounds, done),
        triton.supports(problem.layout, problem.k, bounds.transpose(3, 4), done),
        triton.supports(problem.layout, problem.k.transpose(2, 3), bounds, done),
    )
    for refusal, word in zip(refusals, ("layout", "bounds", "rows of a page"), strict=True):
        assert word in refusal


@pytest.mark.parametrize(("rows", "scores"), [(0, 5), (1, 1 << 30), (1000, 300_000), (7, 0)])
def test_passes_cover_every_row_once(rows, scores):
    passes = triton_sizes.passes(rows, scores)
    assert [row for first, count in passes for row in range(first, first + count)] == [*range(rows)]
    assert all(count == 1 or 4 * count * scores <= triton_sizes.SCORES for _, count in passes)
