"""Lists of which rows share little: their blocks are found, or gathered, row by row."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from saccade.kernels.attend import BlockLists

from .paged import DTYPES, check, cut, few_blocks, make, same

# Blocks that are gathered, pages, and blocks of several pages.
BLOCKS = [(16, 64), (64, 64), (128, 64), (16, 16), (32, 64)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("block", "page"), BLOCKS)
@pytest.mark.parametrize("owners", [2, 6])
def test_the_same_however_it_is_cut(isa, dtype, block, page, owners):
    """Far rows and near ones, alone and in a batch, with a cap, sinks and values of another width:
    the same bits, and near the truth."""
    problem = make([1230, 40, 2500], [90, 40, 3], heads=6, v_dim=40, page=page, dtype=dtype)
    count = 4 if block == 128 else 576 // block  # rows are far from 1024 or 1152 on
    problem = problem.seeing(blocks=few_blocks(problem, block, count, owners, scattered=True))
    problem = problem.having(sink_logits=torch.randn(6), softcap=9.0)
    out, lse = check(problem)
    for s, begin, end in ((0, 0, 90), (0, 1, 2), (0, 30, 60), (0, 89, 90), (2, 0, 2), (2, 2, 3)):
        rows = slice(*(int(problem.keys.cu_rows[s]) + at for at in (begin, end)))
        assert same(cut(problem, s, begin, end).run(), (out[rows], lse[rows]))


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize(("block", "page"), BLOCKS)
def test_lists_of_several_segments(isa, use_threads, dim, block, page):
    """What threads share; the same bits for every number of them and every order of the pages."""
    kinds = {"heads": 6, "dim": dim, "v_dim": dim, "page": page, "dtype": torch.bfloat16}
    found = []
    for shuffle in (0, 1):
        torch.manual_seed(0)
        problem = make([9000, 5300], [2, 1], shuffle=shuffle, **kinds)
        problem = problem.seeing(
            blocks=few_blocks(problem, block, 2400 // block, 2, scattered=True)
        )
        for threads in (1, 2, 3):
            use_threads(threads)
            found.append(problem.run())
        check(problem, 3.0)
    assert all(same(other, found[0]) for other in found[1:])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("block", [16, 32, 64, 128])
def test_the_same_in_pages_of_every_length(isa, dtype, block):
    """But for pages of 16 tokens with tiles, which hold less than a step of them."""
    found = []
    for page in (16, 32, 64, 128):
        if page == 16 and isa.startswith("amx") and dtype == torch.bfloat16:
            continue
        torch.manual_seed(0)
        kinds = {"heads": 6, "dim": 64, "v_dim": 64, "page": page, "dtype": dtype}
        problem = make([4100, 130], [3, 2], **kinds)
        found.append(
            problem.seeing(
                blocks=few_blocks(problem, block, 1536 // block, 2, scattered=True)
            ).run()
        )
    assert all(same(other, found[0]) for other in found[1:])


@pytest.mark.parametrize(("block", "page"), [(b, p) for b, p in BLOCKS if b <= p])
def test_blocks_without_a_page_are_not_seen(isa, block, page):
    """As if they were not listed."""
    problem = make([4200], [9], dim=64, v_dim=64, page=page)
    lists = few_blocks(problem, block, 512 // block, 2, scattered=True)
    table = problem.keys.page_table.clone()
    pages = len(table[0, 3::4])
    table[0, 3::4] = torch.tensor([-1, 10**6]).repeat(pages)[:pages].int()
    gone = (lists.ids // (page // block) % 4 == 3) & (lists.ids >= 0)
    ids = torch.where(gone | (lists.ids < 0), 10**6, lists.ids).sort(-1).values
    left = replace(lists, ids=torch.where(ids == 10**6, -1, ids).int())
    for options in ({}, {"softcap": 2.0}):  # a cap makes a finite score of -inf
        some = problem.having(**options)
        found = some.seeing(blocks=lists, page_table=table).run()
        for a, b in zip(found, some.seeing(blocks=left).run(), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("block", "page"), BLOCKS)
def test_ids_in_no_order(isa, block, page):
    """Ids that do not ascend, or are no blocks, reach no memory but the row's own."""
    problem = make([5000], [3], page=page)
    ids = [[[90, 3, 2**31 - 1, 0], [70, -1, -5, 5]], [[-1, -1, 3, 4], [-(2**31), 7, -1, -1]]]
    ids = torch.tensor(ids, dtype=torch.int32)
    lists = BlockLists(ids, torch.tensor([0, 1, 0], dtype=torch.int32), block, scattered=True)
    out, _ = problem.seeing(blocks=lists).run()
    assert out.isfinite().all()


@pytest.mark.parametrize("block", [64, 2**20, 2**24])
def test_blocks_beyond_any_text(isa, block):
    """What no page table reaches costs nothing, and the keys before it are seen."""
    problem = make([4032], [1])  # whole pages
    ids = torch.full((1, 2, 256), -1, dtype=torch.int32)
    ids[..., 0] = 0
    lists = BlockLists(ids, None, block)
    far = problem.seeing(positions=torch.tensor([2**40]), blocks=lists)
    plain = far.run()
    own = far.seeing(blocks=replace(lists, scattered=True)).run()
    for a, b in zip(own, plain, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("block", "page"), BLOCKS)
def test_no_lists_to_speak_of(isa, block, page):
    """Lists without blocks, and steps without rows."""
    problem = make([4000], [2], page=page)
    for ids in ([[-1, -1]], [[]], [[10**6, 10**8]]):
        ids = torch.tensor(ids, dtype=torch.int32).reshape(1, 1, -1).expand(2, 2, -1).contiguous()
        lists = BlockLists(ids, None, block, scattered=True)
        out, lse = problem.seeing(blocks=lists).run()
        assert (out == 0).all() and (lse == -torch.inf).all()
    none = make([4000, 70], [0, 0], page=page)
    ids = torch.zeros((0, 2, 3), dtype=torch.int32)
    out, lse = none.seeing(blocks=BlockLists(ids, None, block, scattered=True)).run()
    assert out.shape[0] == lse.shape[0] == 0
