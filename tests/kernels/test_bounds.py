"""Key bounds and selection by them: every instruction set against the definition."""

from __future__ import annotations

import pytest
import torch

from saccade.kernels.bounds import key_bounds, select_bounded
from saccade.kernels.bounds.reference import select_bounded as by_reference
from saccade.kernels.compressed import ListRule
from saccade.kernels.select import Candidates
from saccade.kernels.summarize import completed_blocks, slots_per_page

from .paged import DTYPES, Problem, make
from .test_blocks import GEOMETRY

LENGTHS, CHUNKS = [1700, 300, 5], [40, 1, 5]


def bounds_of(problem: Problem, lengths: list[int], block: int) -> torch.Tensor:
    """The page field after all blocks of all sequences are written; NaN where nothing belongs."""
    page = problem.layout.page_size
    cu = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    positions = torch.cat([torch.arange(length) for length in lengths])
    done = completed_blocks(cu, positions, problem.keys.page_table, block, page)
    shape = (problem.k.shape[0], slots_per_page(block, page), problem.k.shape[1], 2)
    bounds = torch.full((*shape, problem.q.shape[2]), torch.nan, dtype=problem.k.dtype)
    key_bounds(problem.layout, problem.k, bounds, done)
    return bounds


def candidates_of(problem: Problem, block: int) -> Candidates:
    keys = problem.keys
    return Candidates(
        keys.cu_rows, keys.positions, keys.page_table, block, problem.layout.page_size
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("block", "page"), GEOMETRY)
def test_bounds_are_the_extreme_keys(isa: str, dtype: torch.dtype, block: int, page: int) -> None:
    lengths = [1500, block - 1, block, 3 * block + 1]
    problem = make(lengths, [1] * 4, page=page, dtype=dtype, dim=40)
    bounds = bounds_of(problem, lengths, block)
    written = 0
    for s, (keys, _) in enumerate(problem.dense):
        blocks = keys.shape[0] // block
        each = keys[: blocks * block].unflatten(0, (-1, block))
        last = (torch.arange(blocks) + 1) * block - 1
        page_ids = problem.keys.page_table[s, last // page].long()
        slot = last % page // block if bounds.shape[1] > 1 else last * 0
        found = bounds[page_ids, slot]
        assert torch.equal(found[:, :, 0], each.amin(1)) and torch.equal(
            found[:, :, 1], each.amax(1)
        )
        written += blocks
    assert int((~bounds.isnan()).flatten(2).all(-1).sum()) == written


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_nan_among_the_keys_stays(isa: str, dtype: torch.dtype) -> None:
    problem = make([64], [1], dtype=dtype)
    page = problem.keys.page_table[0, 0].long()
    problem.k[page, 0, 3, 17, 0] = torch.nan
    channel = 3 * problem.k.shape[4]
    found = bounds_of(problem, [64], 64)[page, 0]
    assert bool(found[0, :, channel].isnan().all()) and int(found.isnan().sum()) == 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("block", "page"), GEOMETRY)
@pytest.mark.parametrize("rule", [ListRule(1), ListRule(5), ListRule(9, 2, 3), ListRule(200)])
@pytest.mark.parametrize("reduction", ["max", "sum"])
def test_selection(
    isa: str, dtype: torch.dtype, block: int, page: int, rule: ListRule, reduction: str
) -> None:
    problem = make(LENGTHS, CHUNKS, heads=10, page=page, dtype=dtype, dim=40)
    bounds = bounds_of(problem, LENGTHS, block)
    ids = select_bounded(problem.q, bounds, candidates_of(problem, block), rule, reduction)
    assert ids.shape == (46, 2, rule.listed) and ids.dtype == torch.int32
    for (begin, end), (keys, _) in zip(problem.bounds(), problem.dense, strict=True):
        each = keys[: keys.shape[0] // block * block].unflatten(0, (-1, block)).double()
        q = problem.q[begin:end].double().unflatten(1, (2, 5))[:, :, :, None]
        ends = (q * x.transpose(0, 1)[None, :, None] for x in (each.amin(1), each.amax(1)))
        truth = torch.maximum(*ends).sum(-1)  # [rows, Hkv, group, blocks]
        truth = truth.amax(2) if reduction == "max" else truth.sum(2)
        for row in range(begin, end):
            own = int(problem.keys.positions[row]) // block
            for head in range(2):
                mine = [i for i in ids[row, head].tolist() if i >= 0]
                forced = {*range(min(rule.first, own + 1))}
                forced |= {*range(max(own + 1 - rule.recent, 0), own + 1)}
                assert mine == sorted(set(mine)) and forced <= set(mine)
                assert mine[-1] == own and len(mine) == min(rule.listed, own + 1)
                taken = [i for i in mine if i not in forced]
                left = [i for i in range(own) if i not in mine]
                if taken and left:  # margin: the sums are rounded
                    best_left = float(truth[row - begin, head, left].max())
                    assert float(truth[row - begin, head, taken].min()) >= best_left - 2e-3


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_key_scores_above_its_bound(isa: str, dtype: torch.dtype) -> None:
    """One block of the highest bound; its bound is at least every score of every block left out."""
    problem = make([1000], [30], heads=2, kv_heads=2, dtype=dtype)
    bounds = bounds_of(problem, [1000], 16 * 4)
    ids = select_bounded(problem.q, bounds, candidates_of(problem, 64), ListRule(2))
    (keys, _) = problem.dense[0]
    scores = torch.einsum("thd,lhd->thl", problem.q.double(), keys.double())
    for row in range(30):
        for head in range(2):
            best, own = ids[row, head].tolist()
            page = problem.keys.page_table[0, best].long()
            q = problem.q[row, head].double()
            bound = torch.maximum(*(q * x for x in bounds[page, 0, head].double())).sum()
            assert bound >= scores[row, head, : own * 64].max() - 1e-3


@pytest.mark.parametrize("rows", [1, 4, 40])  # threads share the blocks of few rows
def test_equal_bounds_take_the_later_block_and_nan_none(isa: str, rows: int) -> None:
    problem = make([640], [rows])
    problem.q.round_()  # sums of whole numbers are exact in any order
    bounds = torch.ones((problem.k.shape[0], 1, 2, 2, 32))
    select = candidates_of(problem, 64)
    ids = select_bounded(problem.q, bounds, select, ListRule(4))
    assert bool((ids == torch.tensor([6, 7, 8, 9], dtype=torch.int32)).all())
    some = torch.randint(0, 3, (problem.k.shape[0], 1, 2, 1, 1)).float()
    ids = select_bounded(problem.q.abs(), bounds * some, select, ListRule(5))
    assert torch.equal(
        ids, by_reference(problem.q.abs(), bounds * some, select, ListRule(5), "max")
    )
    bounds[problem.keys.page_table[0, 7].long()] = torch.nan
    ids = select_bounded(problem.q, bounds, select, ListRule(4))
    assert bool((ids == torch.tensor([5, 6, 8, 9], dtype=torch.int32)).all())
    assert torch.equal(ids, by_reference(problem.q, bounds, select, ListRule(4), "max"))


def test_infinite_bounds_leave_forced_blocks_their_places(isa: str) -> None:
    problem = make([640], [4])
    problem.q.fill_(1.0)
    bounds = torch.zeros((problem.k.shape[0], 1, 2, 2, 32))
    bounds[:, :, :, 1] = torch.inf
    select, rule = candidates_of(problem, 64), ListRule(4, first=2)
    ids = select_bounded(problem.q, bounds, select, rule)
    assert bool((ids == torch.tensor([0, 1, 8, 9], dtype=torch.int32)).all())
    assert torch.equal(ids, by_reference(problem.q, bounds, select, rule, "max"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_selects_the_same_in_any_batch(isa: str, dtype: torch.dtype) -> None:
    problem = make([900, 400], [37, 3], dtype=dtype)
    bounds, keys = bounds_of(problem, [900, 400], 64), problem.keys
    ids = select_bounded(problem.q, bounds, candidates_of(problem, 64), ListRule(4))
    one = torch.tensor([0, 1], dtype=torch.int32)
    for s, (begin, end) in enumerate(problem.bounds()):
        for row in range(begin, end):
            place = (keys.positions[row : row + 1], keys.page_table[s : s + 1])
            alone = Candidates(one, *place, 64, 64)
            found = select_bounded(problem.q[row : row + 1], bounds, alone, ListRule(4))
            assert torch.equal(found[0], ids[row])


def test_doors() -> None:
    problem = make([100], [1])
    bounds, candidates = torch.zeros((problem.k.shape[0], 1, 2, 2, 32)), candidates_of(problem, 64)
    with pytest.raises(ValueError, match="do not fit"):
        select_bounded(problem.q[..., :16], bounds, candidates, ListRule(3))
    with pytest.raises(ValueError, match="share a dtype"):
        select_bounded(problem.q.bfloat16(), bounds, candidates, ListRule(3))
    with pytest.raises(ValueError, match="one of max, sum, not 'mean'"):
        select_bounded(problem.q, bounds, candidates, ListRule(3), "mean")
    keys = problem.keys
    done = completed_blocks(keys.cu_rows, keys.positions, keys.page_table, 64, 64)
    with pytest.raises(ValueError, match="bounds must be"):
        key_bounds(problem.layout, problem.k, bounds[:, :, :1], done)
