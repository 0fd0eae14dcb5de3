"""A row's bits depend on that row and its keys alone: not on cuts, batches, pages or threads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from .paged import DTYPES, Problem, cut, make, random_lists, same

LENGTHS, CHUNKS = [2300, 90, 1, 400], [70, 90, 1, 3]


def plain(problem: Problem) -> Problem:
    return problem


def windowed(problem: Problem) -> Problem:
    return problem.seeing(window=150, sinks=5).having(sink_logits=torch.randn(4))


def listed(problem: Problem) -> Problem:
    lists = random_lists(problem, 32, problem.q.shape[1])
    return problem.seeing(blocks=lists).having(softcap=8.0)


def bounded(problem: Problem) -> Problem:
    lo = (problem.keys.positions - 700).int()
    return problem.seeing(lo=lo, hi=(problem.keys.positions - 10).int())


KINDS: list[Callable[[Problem], Problem]] = [plain, windowed, listed, bounded]
every_kind = pytest.mark.parametrize("kind", KINDS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@every_kind
@every_dtype
def test_alone_and_in_any_batch(isa, dtype, kind):
    """Each sequence alone, single rows alone, and the batch in another order."""
    problem = kind(make(LENGTHS, CHUNKS, dtype=dtype))
    out, lse = problem.run()
    for seq, (begin, end) in enumerate(problem.bounds()):
        alone = cut(problem, seq, 0, end - begin)
        assert same(alone.run(), (out[begin:end], lse[begin:end]))
        for row in {0, (end - begin) // 2, end - begin - 1}:
            single = cut(problem, seq, row, row + 1)
            at = slice(begin + row, begin + row + 1)
            assert same(single.run(), (out[at], lse[at]))


@every_kind
@every_dtype
def test_one_token_at_a_time(isa, dtype, kind):
    """The slowest chunking there is: a whole prompt token by token, as decode does it."""
    problem = kind(make([75], [75], dtype=dtype))
    parts = [cut(problem, 0, row, row + 1).run() for row in range(75)]
    assert same(problem.run(), tuple(map(torch.cat, zip(*parts, strict=True))))


@pytest.mark.parametrize("heads", [2, 6, 14])
@every_dtype
@settings(max_examples=3)
@given(cuts=st.sets(st.integers(1, 139), max_size=5))
def test_any_cut(isa, dtype, heads, cuts):
    """Any cut of a chunk into smaller ones, for groups that fill tiles in different ways."""
    problem = make([2101], [140], heads=heads, dtype=dtype)
    edges = [0, *sorted(cuts), 140]
    parts = [cut(problem, 0, a, b).run() for a, b in pairwise(edges)]
    assert same(problem.run(), tuple(map(torch.cat, zip(*parts, strict=True))))


@every_dtype
def test_cut_with_large_groups(isa, dtype):
    """A group that needs several units of work for each token."""
    problem = make([100], [5], heads=260, kv_heads=1, dtype=dtype)
    parts = [cut(problem, 0, row, row + 1).run() for row in range(5)]
    assert same(problem.run(), tuple(map(torch.cat, zip(*parts, strict=True))))


@every_kind
@every_dtype
def test_pages_in_any_place(isa, dtype, kind):
    """Which pages hold the keys changes nothing, and neither does the size of the pool."""
    torch.manual_seed(1)
    first = kind(make(LENGTHS, CHUNKS, dtype=dtype)).run()
    for shuffle in (1, 2):
        torch.manual_seed(1)
        assert same(kind(make(LENGTHS, CHUNKS, dtype=dtype, shuffle=shuffle)).run(), first)


@every_dtype
def test_page_size(isa, dtype):
    """The size of a page is a matter of memory, not of arithmetic."""
    first = make(LENGTHS, CHUNKS, dtype=dtype, page=32).run()
    for page in (16, 64, 128, 256):
        if page == 16 and isa.startswith("amx") and dtype == torch.bfloat16:
            continue  # half a tile: served by AVX-512, which sums pairs in another order
        assert same(make(LENGTHS, CHUNKS, dtype=dtype, page=page).run(), first)


@every_kind
@every_dtype
def test_threads(isa, use_threads, dtype, kind):
    """Any number of threads; few long sequences are split among them, many are not."""
    problem = kind(make(LENGTHS, CHUNKS, dtype=dtype))
    decode = cut(problem, 0, 69, 70)
    use_threads(1)
    expected, expected_decode = problem.run(), decode.run()
    for threads in (2, 3, 5):
        use_threads(threads)
        assert same(problem.run(), expected) and same(decode.run(), expected_decode)


@every_dtype
def test_neighbours_in_the_unit(isa, dtype):
    """Other heads, other rows and their masks leave a row alone."""
    problem = make([2200], [50], dtype=dtype)
    out, lse = problem.run()
    q = torch.randn(problem.q.shape).to(dtype) * 5
    q[20, 1] = problem.q[20, 1]
    lo = torch.randint(0, 2300, (50,)).int()
    lo[20] = 0
    other, other_lse = replace(problem, q=q).seeing(lo=lo).run()
    assert same((other[20, 1], other_lse[20, 1]), (out[20, 1], lse[20, 1]))


@every_dtype
def test_twice(isa, dtype):
    """The same call twice."""
    problem = make([2500, 30], [2, 30], dtype=dtype)
    assert same(problem.run(), problem.run())


@pytest.mark.parametrize("owners", [4, 2])
@pytest.mark.parametrize("block", [16, 64, 512])
def test_lists_of_several_parts(isa, use_threads, block, owners):
    """Long lists: rows of a prompt, alone, and alone on any number of threads."""
    problem = make([9000, 4100], [40, 3], dtype=torch.bfloat16)
    lists = random_lists(problem, block, owners, share=0.4)
    assert (lists.ids >= 0).sum(-1).max() * block > 3000
    problem = problem.seeing(blocks=lists)
    out, lse = problem.run()
    for row in (0, 17, 39):
        alone, at = cut(problem, 0, row, row + 1), slice(row, row + 1)
        for threads in (1, 2, 3):
            use_threads(threads)
            assert same(alone.run(), (out[at], lse[at]))
