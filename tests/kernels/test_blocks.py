"""Block means and block selection: every instruction set against the definition."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from saccade.kernels.attend import BlockLists
from saccade.kernels.select import Candidates, select_blocks
from saccade.kernels.summarize import block_means, completed_blocks, slots_per_page

from .paged import DTYPES, Problem, make, slots_of

GEOMETRY = [(16, 64), (64, 64), (128, 64), (512, 64), (32, 256), (16, 16)]


def means_of(problem: Problem, lengths: list[int], block: int) -> torch.Tensor:
    """The page field after all blocks of all sequences are written; NaN where nothing belongs."""
    page = problem.layout.page_size
    cu = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    positions = torch.cat([torch.arange(length) for length in lengths])
    done = completed_blocks(cu, positions, problem.keys.page_table, block, page)
    heads, dim = problem.k.shape[1], problem.q.shape[2]
    shape = (problem.k.shape[0], slots_per_page(block, page), heads, dim)
    means = torch.full(shape, torch.nan, dtype=problem.k.dtype)
    block_means(problem.layout, problem.k, means, done)
    return means


def true_means(keys: torch.Tensor, block: int) -> torch.Tensor:
    """float64 [blocks, Hkv, d] of K [T, Hkv, d] as it was written."""
    whole = keys.shape[0] // block * block
    return keys[:whole].double().unflatten(0, (-1, block)).mean(1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("block", "page"), GEOMETRY)
def test_means(isa: str, dtype: torch.dtype, block: int, page: int) -> None:
    lengths = [1500, block - 1, block, 3 * block + 1]
    problem = make(lengths, [1] * 4, page=page, dtype=dtype, dim=40)
    means = means_of(problem, lengths, block)
    written = 0
    for s, (keys, _) in enumerate(problem.dense):
        truth = true_means(keys, block)
        last = (torch.arange(truth.shape[0]) + 1) * block - 1
        page_ids = problem.keys.page_table[s, last // page].long()
        slot = last % page // block if means.shape[1] > 1 else last * 0
        found = means[page_ids, slot].double()
        limit = torch.finfo(dtype).eps * 0.51 * truth.abs() + 2e-7
        assert bool(((found - truth).abs() <= limit).all())
        written += truth.shape[0]
    assert int((~means.isnan()).all(-1).all(-1).sum()) == written  # incomplete blocks: untouched


def chosen_by_definition(problem: Problem, means: torch.Tensor, block: int, topk: int) -> list:
    """Per row and head the set of admissible ids: (ids above the margin, ids within it, own)."""
    answers = []
    for (begin, end), (keys, _) in zip(problem.bounds(), problem.dense, strict=True):
        truth = true_means(keys, block).to(means.dtype).double()
        group = problem.q.shape[1] // truth.shape[1]
        scores = torch.einsum(
            "thd,bhd->thb", problem.q[begin:end].double(), truth.repeat_interleave(group, 1)
        )
        for row in range(begin, end):
            own = int(problem.keys.positions[row]) // block
            answers.append((scores[row - begin, :, :own], own))
    return answers


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("block", "page"), GEOMETRY)
@pytest.mark.parametrize("topk", [0, 1, 3, 200])
def test_selection(isa: str, dtype: torch.dtype, block: int, page: int, topk: int) -> None:
    lengths, chunks = [1700, 300, 5], [70, 1, 5]
    problem = make(lengths, chunks, heads=6, page=page, dtype=dtype, dim=48)
    means = means_of(problem, lengths, block)
    keys = problem.keys
    candidates = Candidates(keys.cu_rows, keys.positions, keys.page_table, block, page)
    ids = select_blocks(problem.q, means, candidates, topk)
    assert ids.shape == (76, 6, topk + 1)
    for row, (scores, own) in enumerate(chosen_by_definition(problem, means, block, topk)):
        for head in range(6):
            mine = [i for i in ids[row, head].tolist() if i >= 0]
            assert mine == sorted(set(mine))
            assert mine[-1] == own
            assert len(mine) == min(topk, own) + 1
            taken = scores[head, mine[:-1]]
            left = [i for i in range(own) if i not in mine]
            if left and len(mine) > 1:  # margin: the products are rounded
                assert float(taken.min()) >= float(scores[head, left].max()) - 1e-3


def test_equal_scores_take_the_later_block(isa: str) -> None:
    problem = make([640], [4])
    means = torch.ones((problem.k.shape[0], 1, 2, 32))
    keys = problem.keys
    candidates = Candidates(keys.cu_rows, keys.positions, keys.page_table, 64, 64)
    ids = select_blocks(problem.q, means, candidates, 3)
    assert bool((ids == torch.tensor([6, 7, 8, 9], dtype=torch.int32)).all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_is_never_chosen(isa: str, dtype: torch.dtype) -> None:
    problem = make([640], [4], dtype=dtype)
    means = means_of(problem, [640], 64)
    means[problem.keys.page_table[0, 5].long()] = torch.nan
    keys = problem.keys
    candidates = Candidates(keys.cu_rows, keys.positions, keys.page_table, 64, 64)
    ids = select_blocks(problem.q, means, candidates, 9)
    assert bool((ids != 5).all())
    assert bool(((ids >= 0).sum(-1) == 9).all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_selects_the_same_in_any_batch(isa: str, dtype: torch.dtype) -> None:
    """Bitwise: the ids of one-token batches are those of the whole chunk."""
    problem = make([900, 400], [37, 3], dtype=dtype)
    means = means_of(problem, [900, 400], 64)
    keys = problem.keys
    both = Candidates(keys.cu_rows, keys.positions, keys.page_table, 64, 64)
    ids = select_blocks(problem.q, means, both, 3)
    for s, (begin, end) in enumerate(problem.bounds()):
        for row in range(begin, end):
            alone = Candidates(
                torch.tensor([0, 1], dtype=torch.int32),
                keys.positions[row : row + 1],
                keys.page_table[s : s + 1],
                64,
                64,
            )
            found = select_blocks(problem.q[row : row + 1], means, alone, 3)
            assert torch.equal(found[0], ids[row])


def test_a_large_group_of_heads(isa: str) -> None:
    problem = make([300], [2], heads=160, kv_heads=1)
    means = means_of(problem, [300], 64)
    keys = problem.keys
    candidates = Candidates(keys.cu_rows, keys.positions, keys.page_table, 64, 64)
    ids = select_blocks(problem.q, means, candidates, 2)
    lists = BlockLists(ids, torch.arange(2, dtype=torch.int32), 64)
    out, _ = replace(problem, keys=replace(keys, blocks=lists)).run()
    assert bool(out.isfinite().all())


@pytest.mark.parametrize(("block", "page"), [(8, 64), (96, 64), (48, 16)])
def test_blocks_that_do_not_fit_pages_are_refused(block: int, page: int) -> None:
    if block == 48:
        assert slots_per_page(block, page) == 1  # three whole pages
        return
    with pytest.raises(ValueError, match="page size of 64"):
        slots_per_page(block, page)


def test_doors() -> None:
    problem = make([100], [1])
    keys = problem.keys
    candidates = Candidates(keys.cu_rows, keys.positions, keys.page_table, 64, 64)
    means = torch.zeros((problem.k.shape[0], 1, 2, 32))
    with pytest.raises(ValueError, match=r"topk must be in 0\.\.256"):
        select_blocks(problem.q, means, candidates, 257)
    with pytest.raises(ValueError, match="do not fit"):
        select_blocks(problem.q[..., :16], means, candidates, 1)
    for text, wrong in (
        ("positions must be int64", {"positions": keys.positions.int()}),
        ("positions must be contiguous", {"positions": torch.zeros((2, 3)).long()[:, 0]}),
        ("must be int32", {"page_table": keys.page_table.long()}),
        ("cu_rows must ascend", {"cu_rows": keys.cu_rows * 2}),
        (r"cu_rows \[S \+ 1\]", {"cu_rows": keys.cu_rows[:1]}),
        ("block 0", {"block": 0}),
        ("1 means a page of 64 do not fit blocks of 16", {"block": 16}),
    ):
        bad = replace(candidates, **wrong)
        q = problem.q.expand(bad.positions.shape[0], -1, -1)
        with pytest.raises(ValueError, match=text):
            select_blocks(q, means, bad, 1)
    done = completed_blocks(keys.cu_rows, keys.positions, keys.page_table, 64, 64)
    with pytest.raises(ValueError, match="means must be"):
        block_means(problem.layout, problem.k, means[:, :, :1], done)


def test_slots_of_a_sequence() -> None:
    table = torch.tensor([3, 1], dtype=torch.int32)
    assert slots_of(table, torch.tensor([0, 63, 64]), 64).tolist() == [192, 255, 64]


def test_no_block_but_its_own(isa: str) -> None:
    """However many blocks there are before it, none is chosen, and nothing else is touched."""
    length, block = 600 * 16, 16
    problem = make([length], [3])
    means = torch.randn(problem.k.shape[0], 4, problem.k.shape[1], problem.q.shape[2])
    keys = problem.keys
    where = Candidates(keys.cu_rows, keys.positions, keys.page_table, block, 64)
    ids = select_blocks(problem.q, means, where, 0)
    assert torch.equal(ids, (where.positions // block).int()[:, None, None].expand_as(ids))
    everything = select_blocks(problem.q, means, where, 256)
    assert bool((everything[..., :-1] < everything[..., 1:]).all())


def test_rows_in_any_order(isa: str) -> None:
    """A row with little history may stand behind one with much."""
    problem = make([1500], [64])
    means = means_of(problem, [1500], 64)
    cu, table = problem.keys.cu_rows, problem.keys.page_table
    spread = torch.arange(64) * 23
    ids = select_blocks(problem.q, means, Candidates(cu, spread, table, 64, 64), 5)
    back = torch.arange(63, -1, -1)
    turned = Candidates(cu, spread[back], table, 64, 64)
    assert torch.equal(select_blocks(problem.q[back], means, turned, 5), ids[back])


def test_what_has_lost_a_page_is_left_out(isa: str) -> None:
    """Neither among the complete blocks, nor written by kernels that are asked for it."""
    problem = make([256], [1], page=64)
    cu, every = torch.tensor([0, 256], dtype=torch.int32), torch.arange(256)
    table = problem.keys.page_table.clone()
    whole = completed_blocks(cu, every, table, 64, 64)
    table[0, 1] = -1
    kept = completed_blocks(cu, every, table, 64, 64)
    assert kept.home.tolist() == [whole.home[i].item() for i in (0, 2, 3)]
    far = 1 << 40
    for name, value in (("home", -1), ("home", far), ("members", -1), ("members", far)):
        changed = getattr(whole, name).clone()
        changed[1] = value
        done = replace(whole, **{name: changed})
        means = torch.full((problem.k.shape[0], 1, 2, 32), torch.nan)
        block_means(problem.layout, problem.k, means, done)
        assert sorted((~means.isnan()).all(-1).all(-1).nonzero()[:, 0].tolist()) == sorted(
            kept.home.tolist()
        )
    with pytest.raises(ValueError, match="home must be int64"):
        block_means(problem.layout, problem.k, means, replace(whole, home=whole.home.int()))
