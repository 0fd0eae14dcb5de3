"""Which keys a row sees: windows, sinks, soft-caps, row subsets, block lists, and their limits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from saccade.kernels.attend import BlockLists, Keys
from saccade.kernels.attend.reference import visible
from saccade.kernels.merge import merge

from .paged import DTYPES, check, cut, few_blocks, make, random_lists, same

EVERYTHING = 2**40


def int32(values) -> torch.Tensor:
    return torch.as_tensor(values, dtype=torch.int32)


def test_the_oracles_mask():
    """The mask of the oracle, key by key, as the docstring of Keys tells it."""
    ids = int32([[[0, 2], [-1, -1]], [[1, 3], [0, 7]]])
    blocks = BlockLists(ids, int32([1, 0, 1]), 16)
    keys = Keys(
        int32([0, 3]), torch.tensor([20, 40, 60]), int32([[0]]),
        lo=int32([0, 3, 5]), hi=int32([21, 70, 50]), window=30, sinks=9, blocks=blocks,
    )  # fmt: skip
    mask = visible(keys, slice(0, 3), 4, 64)
    for head in range(4):
        for row in range(3):
            held = ids[blocks.list_of_row[row], head // 2].tolist()
            for j in range(64):
                position = int(keys.positions[row])
                seen = keys.lo[row] <= j < keys.hi[row] and j // 16 in held
                seen = bool(seen and (position - j < 30 or j < 9))
                assert bool(mask[head, row, j]) == seen


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("window", [1, 16, 17, 130, 2048, 2500])
@pytest.mark.parametrize("sinks", [0, 4, 130])
def test_window_and_sinks(isa, dtype, window, sinks):
    """Windows and sinks with a gap between them, and without one; decode and prefill."""
    problem = make([4300, 170], [1, 40], heads=2, kv_heads=1, dtype=dtype)
    check(problem.seeing(window=window, sinks=sinks))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_evicted_pages(isa, dtype):
    """Pages that a window has left may be gone, and gone pages change no bit."""
    problem = make([1000], [10], dtype=dtype).seeing(window=100, sinks=3)
    whole = problem.run()
    table = problem.keys.page_table.clone()
    table[0, 1 : (990 - 100) // 64] = -1
    assert same(problem.seeing(page_table=table).run(), whole)


def test_rows_in_any_order(isa):
    """The rows of a sequence need not ascend, nor be neighbours."""
    problem = make([4500], [60]).seeing(window=700, sinks=2)
    order = torch.randperm(60)
    out, lse = problem.run()
    mixed = replace(problem, q=problem.q[order])
    mixed = mixed.seeing(positions=problem.keys.positions[order])
    assert same(mixed.run(), (out[order], lse[order]))
    far = torch.tensor([4499, 3, 2222])
    check(replace(problem, q=problem.q[:3]).seeing(positions=far, cu_rows=int32([0, 3])))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sink_logits(isa, dtype):
    """Per-head sink logits: large, small, none (-inf), with and without keys."""
    problem = make([300, 5, 70], [20, 1, 2], dtype=dtype)
    sink = torch.tensor([0.5, -torch.inf, 30.0, -30.0])
    check(problem.having(sink_logits=sink))
    hi = torch.where(torch.arange(23) % 3 == 0, 0, problem.keys.positions + 1).int()
    out, lse = check(problem.having(sink_logits=sink).seeing(hi=hi))
    assert torch.equal(out[0], torch.zeros_like(out[0]))
    assert torch.allclose(lse[0], sink)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("softcap", [0.5, 30.0, 1e4])
def test_softcap(isa, dtype, softcap):
    """Soft-capped scores, small and far beyond the cap, together with every other option."""
    # Capped logits are equal, so the errors of their exponentials do not average out.
    check(make([300, 70], [50, 1], dtype=dtype, size=3.0).having(softcap=softcap), factor=3.0)
    problem = make([300, 70], [50, 1], dtype=dtype).having(sink_logits=torch.randn(4))
    check(problem.having(softcap=softcap).seeing(window=40, sinks=3))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_row_subsets(isa, dtype):
    """Each row has its own [lo, hi), some of them empty, reversed or beyond the table."""
    problem = make([2500, 90], [40, 7], heads=2, dtype=dtype)
    lo = torch.randint(-20, 2400, (47,))
    hi = lo + torch.randint(0, 900, (47,))
    lo[40:], hi[40:] = torch.randint(0, 60, (7,)), 90
    hi[5], hi[6], hi[7], lo[8], hi[8] = lo[5], lo[6] - 40, -3, 5, 3
    hi[:40] = hi[:40].clamp(max=2500)
    out, lse = check(problem.seeing(lo=lo.int(), hi=hi.int()))
    assert (lse[5:9] == -torch.inf).all() and (out[5:9] == 0).all()


@pytest.mark.parametrize("hi", [64, 65, 128, 2**31 - 1])
def test_hi_beyond_the_table(isa, hi):
    """A bound beyond the page table means its end, and costs no walk to the bound."""
    problem = make([64], [3])
    table = problem.keys.page_table[:, :1]
    inside = problem.seeing(hi=int32([64] * 3)).run()
    assert same(problem.seeing(hi=int32([hi] * 3), page_table=table).run(), inside)
    far = problem.seeing(positions=torch.full((3,), 2**40), page_table=table)
    assert same(far.run(), inside)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("owners", [6, 2])
@pytest.mark.parametrize("block", [4, 8, 16, 64, 128, 512])
def test_block_lists(isa, dtype, owners, block):
    """Lists per query head and per KV head; empty ones, and blocks in the future."""
    problem = make([1100, 150, 17], [3, 20, 1], heads=6, dtype=dtype)
    problem = problem.seeing(blocks=random_lists(problem, block, owners))
    check(problem)
    check(problem.seeing(window=90, sinks=20).having(sink_logits=torch.zeros(6)))


@pytest.mark.parametrize("page", [16, 256])
def test_block_lists_and_pages(isa, page):
    """Blocks larger and smaller than a page, decode over several segments."""
    problem = make([5000], [1], page=page)
    for block in (4, 8, 16, 64, 1024):
        check(problem.seeing(blocks=random_lists(problem, block, 4, share=0.2)))


def test_lists_without_visible_blocks(isa):
    """All -1, no columns, and future blocks alone give empty rows."""
    problem = make([200], [9])
    for ids in ([[-1, -1]], [[]], [[4, 9]], [[2**31 - 1, -1]], [[10**6, 10**8]]):
        ids = int32(ids).reshape(1, 1, -1).expand(1, 4, -1).contiguous()
        lists = BlockLists(ids, torch.zeros(9, dtype=torch.int32), 64)
        out, lse = problem.seeing(blocks=lists).run()
        assert (out == 0).all() and (lse == -torch.inf).all()


@pytest.mark.parametrize("block", [4, 8])
def test_short_blocks_side_by_side_are_long_ones(isa, block):
    """The same keys, named by shorter blocks, give the same bits; a list of 600 entries too."""
    problem = make([2700, 90], [5, 60])
    lists = random_lists(problem, 16, 2)
    part = torch.arange(16 // block, dtype=torch.int32)
    ids = lists.ids[..., None] * (16 // block) + part
    ids = torch.where(lists.ids[..., None] < 0, -1, ids).flatten(2)
    short = BlockLists(ids.contiguous(), lists.list_of_row, block)
    assert same(problem.seeing(blocks=short).run(), problem.seeing(blocks=lists).run())
    zeros = torch.zeros(65, dtype=torch.int32)
    every = [torch.arange(-(-2700 // size), dtype=torch.int32) for size in (block, 16)]
    wholes = [
        problem.seeing(blocks=BlockLists(ids.expand(1, 2, -1).contiguous(), zeros, size))
        for ids, size in zip(every, (block, 16), strict=True)
    ]
    assert same(wholes[0].run(), wholes[1].run())
    check(wholes[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("block", [4, 8])
def test_few_short_blocks_far_from_the_beginning(isa, dtype, block):
    """Keys that are gathered, in some rows of a sequence; the same bits however they are cut."""
    problem = make([900, 40, 2500], [600, 40, 3], heads=6, v_dim=40, dtype=dtype)
    problem = problem.seeing(blocks=few_blocks(problem, block, 12))
    problem = problem.having(sink_logits=torch.randn(6), softcap=9.0)
    out, lse = check(problem)
    for s, begin, end in (
        (0, 0, 600),
        (0, 1, 2),
        (0, 70, 500),
        (0, 599, 600),
        (2, 0, 2),
        (2, 2, 3),
    ):
        rows = slice(*(int(problem.keys.cu_rows[s]) + at for at in (begin, end)))
        assert same(cut(problem, s, begin, end).run(), (out[rows], lse[rows]))


def test_a_list_longer_than_a_segment_is_gathered(isa):
    problem = make([17000], [5], dim=64, v_dim=64)
    problem = problem.seeing(blocks=few_blocks(problem, 4, 520))
    out, lse = check(problem, 3.0)  # a segment's 2048 keys are one chain of sums, torch's many
    assert same(cut(problem, 0, 3, 4).run(), (out[3:4], lse[3:4]))


def test_short_blocks_without_a_page_are_not_seen(isa):
    problem = make([2500], [9])
    lists = few_blocks(problem, 4, 40)
    table = problem.keys.page_table.clone()
    table[0, 3::4] = torch.tensor([-1, 10**6] * 5)[: len(table[0, 3::4])].int()
    gone = (lists.ids // 16 % 4 == 3) & (lists.ids >= 0)
    ids = torch.where(gone | (lists.ids < 0), 10**6, lists.ids).sort(-1).values
    left = BlockLists(torch.where(ids == 10**6, -1, ids).int(), lists.list_of_row, 4)
    for options in ({}, {"softcap": 2.0}):  # a cap makes a finite score of -inf
        some = problem.having(**options)
        found = some.seeing(blocks=lists, page_table=table).run()
        for a, b in zip(found, some.seeing(blocks=left).run(), strict=True):
            torch.testing.assert_close(a, b)


def test_short_blocks_in_no_order(isa):
    """Ids that do not ascend reach no memory but the row's own."""
    problem = make([5000], [3])
    ids = int32([[[1200, 3, 1100, 0], [700, 2**31 - 1, -1, 5]]])
    lists = BlockLists(ids, torch.zeros(3, dtype=torch.int32), 4)
    out, _ = problem.seeing(blocks=lists).run()
    assert out.isfinite().all()


@pytest.mark.parametrize("owners", [2, 4])
def test_lists_in_the_order_of_the_rows(isa, owners):
    """Without list_of_row a row's list is the one of its own number."""
    problem = make([700, 90], [5, 60])
    lists = random_lists(problem, 64, owners)
    ordered = BlockLists(lists.ids[lists.list_of_row.long()].contiguous(), None, 64)
    assert same(problem.seeing(blocks=ordered).run(), problem.seeing(blocks=lists).run())
    check(problem.seeing(blocks=ordered))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_limits_that_are_dense(isa, dtype):
    """A window of everything, all blocks of a short text, and bounds that bind nowhere change no
    bit.
    """
    problem = make([2100, 300], [5, 60], dtype=dtype)
    dense = problem.run()
    for window in (2100, 2**31 - 1, 2**31, 2**32, EVERYTHING):
        assert same(problem.seeing(window=window).run(), dense)
    for sinks in (2100, 2**31, 2**32, EVERYTHING):
        assert same(problem.seeing(window=1, sinks=sinks).run(), dense)
    ids = torch.arange(40, dtype=torch.int32).expand(1, 2, -1).contiguous()
    lists = BlockLists(ids, torch.zeros(65, dtype=torch.int32), 64)
    check(problem.seeing(blocks=lists))  # long lists are summed by parts, and rounded there
    short = BlockLists(ids[..., :16].contiguous(), torch.zeros(60, dtype=torch.int32), 64)
    few = make([1000], [60], dtype=dtype)
    assert same(few.seeing(blocks=short).run(), few.run())
    lo, hi = torch.zeros(65, dtype=torch.int32), problem.keys.positions.int() + 1
    assert same(problem.seeing(lo=lo, hi=hi).run(), dense)
    assert same(problem.having(sink_logits=torch.full((4,), -torch.inf)).run(), dense)


@pytest.mark.parametrize("at", [1, 100, 2048, 2100, 2999])
def test_split_and_merge_is_dense(isa, at):
    """Keys below `at` and from `at` on, merged, are all keys."""
    problem = make([3000], [20])
    out, lse = problem.run()
    hi = torch.minimum(problem.keys.positions + 1, torch.tensor(at)).int()
    below = problem.seeing(hi=hi).run()
    above = problem.seeing(lo=torch.full((20,), at, dtype=torch.int32)).run()
    merged, merged_lse = merge(*below, *above)
    assert (merged - out).abs().max() < 1e-6 and (merged_lse - lse).abs().max() < 2e-6
