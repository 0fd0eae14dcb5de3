"""Means of overlapping windows, and selection by pooled weights: every instruction set against the
definition.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from saccade.kernels.pooled import Entries, PooledRule, select_pooled
from saccade.kernels.pooled.reference import select_pooled as by_reference
from saccade.kernels.select import Candidates
from saccade.kernels.summarize import block_means, completed_blocks, slots_per_page

from .paged import DTYPES, Problem, make

# (size, stride) of windows and pages: windows that straddle pages, pages that hold several, ...
GEOMETRY = [(32, 16, 64), (128, 64, 64), (128, 64, 32), (32, 16, 16), (64, 16, 32), (16, 16, 256)]
LENGTHS, CHUNKS = [1700, 300, 40, 5], [18, 1, 40, 5]


def windows_of(problem: Problem, lengths: list[int], size: int, stride: int) -> Entries:
    """The page field after all windows of all sequences are written; NaN where nothing belongs."""
    page = problem.layout.page_size
    cu = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    positions = torch.cat([torch.arange(length) for length in lengths])
    done = completed_blocks(cu, positions, problem.keys.page_table, size, page, stride)
    shape = (problem.k.shape[0], slots_per_page(stride, page), problem.k.shape[1])
    data = torch.full((*shape, problem.q.shape[2]), torch.nan, dtype=problem.k.dtype)
    block_means(problem.layout, problem.k, data, done)
    return Entries(data, size, stride)


def true_windows(keys: torch.Tensor, size: int, stride: int) -> torch.Tensor:
    """float64 [windows, Hkv, d] of K [T, Hkv, d] as it was written."""
    count = max(0, (keys.shape[0] - size) // stride + 1)
    each = [keys[i * stride : i * stride + size].double().mean(0) for i in range(count)]
    return torch.stack(each) if each else keys.double()[:0]


def candidates_of(problem: Problem, block: int) -> Candidates:
    keys = problem.keys
    return Candidates(
        keys.cu_rows, keys.positions, keys.page_table, block, problem.layout.page_size
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("size", "stride", "page"), GEOMETRY)
def test_window_means(isa: str, dtype: torch.dtype, size: int, stride: int, page: int) -> None:
    lengths = [1500, size - 1, size, size + stride, 3 * size + 1]
    problem = make(lengths, [1] * 5, page=page, dtype=dtype, dim=40)
    data, written = windows_of(problem, lengths, size, stride).data, 0
    for s, (keys, _) in enumerate(problem.dense):
        truth = true_windows(keys, size, stride)
        last = torch.arange(truth.shape[0]) * stride + size - 1
        page_ids = problem.keys.page_table[s, last // page].long()
        slot = last % page // stride if data.shape[1] > 1 else last * 0
        found = data[page_ids, slot].double()
        limit = torch.finfo(dtype).eps * 0.51 * truth.abs() + 2e-7
        assert bool(((found - truth).abs() <= limit).all())
        written += truth.shape[0]
    assert int((~data.isnan()).all(-1).all(-1).sum()) == written  # incomplete windows: untouched


def test_windows_in_two_steps_are_those_in_one() -> None:
    """A window whose first keys an earlier step wrote."""
    problem = make([200], [1])
    table, one = problem.keys.page_table, torch.tensor([0, 200], dtype=torch.int32)
    whole = completed_blocks(one, torch.arange(200), table, 32, 64, 16)
    parts = [
        completed_blocks(torch.tensor([0, b - a]), torch.arange(a, b), table, 32, 64, 16)
        for a, b in ((0, 47), (47, 48), (48, 111), (111, 200))
    ]
    for name in ("members", "home", "begin"):
        assert torch.equal(torch.cat([getattr(x, name) for x in parts]), getattr(whole, name))


def block_weights(
    q: torch.Tensor, position: int, weight: str, fine: Any, coarse: Any
) -> torch.Tensor:
    """float64 [owners, blocks] of q [owners, group, d] at a position; -inf: nothing overlaps.

    fine: (all entries [E, owners, d], size, stride, block); coarse: the same, or None.
    """
    entries, size, stride, block = fine

    def scores(entries: torch.Tensor, size: int, stride: int) -> torch.Tensor:
        seen = entries[: max(0, (position + 1 - size) // stride + 1)]
        return torch.einsum("ogd,eod->oge", q, seen) * q.shape[2] ** -0.5

    each = scores(entries, size, stride)
    over = scores(*coarse[:3]) if coarse and position + 1 >= coarse[1] else each
    if weight == "relu":
        each = each.relu()
    elif each.shape[2]:
        each = (each - over.logsumexp(-1, keepdim=True)).exp()
    sums, own = each.sum(1), position // block
    weights = torch.full((q.shape[0], own + 2), -torch.inf, dtype=torch.float64)
    number = torch.arange(sums.shape[1])
    for part in range(0, size, min(stride, block)):  # windows by one of the blocks they overlap
        at = ((number * stride + part) // block).clamp(max=own + 1)
        weights.scatter_reduce_(1, at.expand_as(sums), sums, "amax")
    return weights[:, : own + 1]


CASES: list[tuple[tuple[int, int, int], tuple[int, int] | None, int]] = [
    ((32, 16, 64), None, 64),
    ((32, 16, 64), (128, 64), 64),
    ((32, 16, 64), (64, 32), 16),
    ((32, 16, 32), None, 32),
    ((64, 32, 128), (256, 128), 64),
    ((16, 16, 16), None, 64),
    ((64, 16, 64), None, 256),
]
RULES = [
    PooledRule(1),
    PooledRule(9, 1, 3),
    PooledRule(6, 0, 0, "relu"),
    PooledRule(6, 2, 0),
    PooledRule(200, weight="relu"),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("fine", "coarse", "page"), CASES)
@pytest.mark.parametrize("rule", RULES)
def test_selection(
    isa: str, dtype: torch.dtype, fine: Any, coarse: Any, page: int, rule: PooledRule
) -> None:
    size, stride, block = fine
    problem = make(LENGTHS, CHUNKS, heads=10, page=page, dtype=dtype, dim=40)
    entries = windows_of(problem, LENGTHS, size, stride)
    rough = windows_of(problem, LENGTHS, *coarse) if coarse else None
    scale = 40**-0.5
    ids = select_pooled(problem.q, entries, candidates_of(problem, block), rule, scale, rough)
    assert ids.shape == (64, 2, rule.listed) and ids.dtype == torch.int32
    for (begin, end), (keys, _) in zip(problem.bounds(), problem.dense, strict=True):
        known = [(true_windows(keys, *x[:2]).to(dtype).double(), *x) for x in (fine, coarse) if x]
        for row in range(begin, end):
            position = int(problem.keys.positions[row])
            own, finished = position // block, (position + 1) % block == 0
            q = problem.q[row].double().unflatten(0, (2, 5))
            truth = block_weights(q, position, rule.weight, known[0], (*known, None)[1])
            recent = rule.recent or int(not finished)
            forced = {*range(min(rule.first, own + 1)), *range(max(own + 1 - recent, 0), own + 1)}
            room = rule.listed - (0 if rule.recent or not finished else 1)
            for owner in range(2):
                mine = [i for i in ids[row, owner].tolist() if i >= 0]
                assert mine == sorted(set(mine)) and forced <= set(mine)
                able = [j for j in range(own + 1) if truth[owner, j] > -torch.inf or j in forced]
                assert len(mine) == min(room, len(able)) and set(mine) <= set(able)
                taken = [float(truth[owner, i]) for i in mine if i not in forced]
                left = [float(truth[owner, j]) for j in able if j not in mine]
                if taken and left:  # margin: the sums are rounded
                    assert min(taken) >= max(left) - 3e-3 * max(1.0, max(left))


def integral(seed: int = 0, blocks: int = 10) -> tuple[Problem, Entries]:
    """q and entries of whole numbers: scores are exact in any order of summation."""
    problem = make([64 * blocks], [4], heads=4, dim=32, seed=seed)
    problem.q.round_()
    return problem, Entries(torch.ones((problem.k.shape[0], 4, 2, 32)), 32, 16)


@pytest.mark.parametrize("weight", ["relu", "probability"])
def test_equal_weights_take_the_later_block_and_nan_none(isa: str, weight: str) -> None:
    problem, entries = integral()
    select, rule = candidates_of(problem, 64), PooledRule(4, weight=weight)
    ids = select_pooled(problem.q, entries, select, rule, 0.125)
    assert bool((ids == torch.tensor([6, 7, 8, 9], dtype=torch.int32)).all())
    # Of block 7 (tokens 448 .. 511) all entries: the first ends in it, the last in the next one.
    page = problem.keys.page_table[0].long()
    entries.data[page[7]] = torch.nan
    entries.data[page[8], 0] = torch.nan
    ids = select_pooled(problem.q, entries, select, rule, 0.125)
    assert bool((ids == torch.tensor([5, 6, 8, 9], dtype=torch.int32)).all())
    assert torch.equal(ids, by_reference(problem.q, entries, select, rule, 0.125, None))


def test_a_row_without_complete_entries_has_its_own_blocks_alone(isa: str) -> None:
    problem = make([31, 200], [31, 1], dim=32)
    entries = windows_of(problem, [31, 200], 32, 16)
    ids = select_pooled(problem.q, entries, candidates_of(problem, 16), PooledRule(3), 1.0)
    assert ids[:, 0].tolist()[:31] == [[row // 16, -1, -1] for row in range(31)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weight", ["relu", "probability"])
def test_a_row_selects_the_same_in_any_batch(isa: str, dtype: torch.dtype, weight: str) -> None:
    lengths, chunks = [4800, 400], [37, 3]  # more than one panel of entries
    problem = make(lengths, chunks, heads=6, dtype=dtype, dim=40)
    fine, coarse = (windows_of(problem, lengths, *x) for x in ((32, 16), (128, 64)))
    rule, keys = PooledRule(6, 1, 2, weight), problem.keys
    ids = select_pooled(problem.q, fine, candidates_of(problem, 64), rule, 0.2, coarse)
    one = torch.tensor([0, 1], dtype=torch.int32)
    for s, (begin, end) in enumerate(problem.bounds()):
        for row in range(begin, end):
            place = (keys.positions[row : row + 1], keys.page_table[s : s + 1])
            alone = Candidates(one, *place, 64, 64)
            found = select_pooled(problem.q[row : row + 1], fine, alone, rule, 0.2, coarse)
            assert torch.equal(found[0], ids[row])


@pytest.mark.parametrize("length", [4095 + 32, 4096 + 32, 4096 + 31, 4096 + 16, 8192 + 16])
def test_blocks_at_the_border_of_a_panel(isa: str, length: int) -> None:
    """256 entries a panel: the block behind it takes what the last of them weighs."""
    problem = make([length], [3], heads=4, dim=32, page=16)
    entries, select = windows_of(problem, [length], 32, 16), candidates_of(problem, 16)
    for rule in (PooledRule(2, 0, 1), PooledRule(3, 0, 0), PooledRule(256, 0, 0, "relu")):
        ids = select_pooled(problem.q, entries, select, rule, 1.0)
        truth = by_reference(problem.q, entries, select, rule, 1.0, None)
        assert torch.equal(ids, truth)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("block", "page"), [(4, 16), (8, 64), (32, 16)])
def test_entries_that_are_short_blocks(isa: str, dtype: torch.dtype, block: int, page: int) -> None:
    """One head, as indexers have it; lists shorter and longer than what there is."""
    lengths, chunks = [5003, 40, block - 1], [9, 40, block - 1]
    problem = make(lengths, chunks, heads=3, kv_heads=1, page=page, dtype=dtype)
    generator = torch.Generator().manual_seed(5)
    shape = (problem.k.shape[0], max(1, page // block), 1, 32)
    whole = torch.randint(-2, 3, shape, generator=generator)  # exact sums, and many equal ones
    entries, select = Entries(whole.to(dtype), block, block), candidates_of(problem, block)
    problem.q.round_()
    place = (problem.keys.positions[8:9], problem.keys.page_table[:1])  # the first text's last row
    alone = Candidates(torch.tensor([0, 1], dtype=torch.int32), *place, block, page)
    for listed in (1, 2, 33, 34, 100, 300, 513, 1024):
        rule = PooledRule(listed, 0, 0, "relu")
        ids = select_pooled(problem.q, entries, select, rule, 0.125)
        assert torch.equal(select_pooled(problem.q[8:9], entries, alone, rule, 0.125)[0], ids[8])
        assert torch.equal(ids, by_reference(problem.q, entries, select, rule, 0.125, None))
        unfinished = (problem.keys.positions + 1) % block != 0
        assert torch.equal((ids >= 0).sum(-1).view(-1), _counts(problem, block, listed, unfinished))


def _counts(problem: Problem, block: int, listed: int, unfinished: torch.Tensor) -> torch.Tensor:
    """How long the lists must be: whole blocks up to listed - 1, and an unfinished one."""
    whole = (problem.keys.positions + 1) // block
    return whole.clamp(max=listed - 1) + unfinished


def test_doors() -> None:
    problem, entries = integral()
    select, rule = candidates_of(problem, 64), PooledRule(3)
    with pytest.raises(ValueError, match="do not fit"):
        select_pooled(problem.q[..., :16], entries, select, rule, 1.0)
    with pytest.raises(ValueError, match="do not fit"):
        select_pooled(problem.q.bfloat16(), entries, select, rule, 1.0)
    with pytest.raises(ValueError, match="4 slots a page"):
        select_pooled(problem.q, Entries(entries.data[:, :2], 32, 16), select, rule, 1.0)
    with pytest.raises(ValueError, match="power of two of strides"):
        select_pooled(problem.q, entries, candidates_of(problem, 48), rule, 1.0)
    with pytest.raises(ValueError, match="scale positive"):
        select_pooled(problem.q, entries, select, rule, 0.0)
    for sizes in ((0,), (1025,), (3, 3), (3, 0, 4)):
        with pytest.raises(ValueError, match="listed must be at least first"):
            PooledRule(*sizes)
    with pytest.raises(ValueError, match="must not be negative"):
        PooledRule(3, -1)
    with pytest.raises(ValueError, match="one of relu, probability"):
        PooledRule(3, weight="softmax")
    with pytest.raises(ValueError, match="multiple of their stride"):
        keys = problem.keys
        completed_blocks(keys.cu_rows, keys.positions, keys.page_table, 40, 64, 16)
