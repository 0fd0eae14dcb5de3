"""Means of windows of keys and values: every instruction set against the definition."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from saccade.kernels.summarize import (
    WINDOW_MEANS,
    CompletedBlocks,
    completed_blocks,
    window_means,
)

from .paged import DTYPES, Problem, make

GEOMETRY = [(32, 16, 64), (32, 16, 16), (64, 16, 32), (32, 8, 64), (16, 16, 128), (64, 64, 16),
            (12, 4, 16), (1, 1, 16), (6, 2, 32)]  # fmt: skip
LENGTHS = [300, 31, 32, 33, 1]


def fresh(problem: Problem, stride: int, heads: int, width: int) -> torch.Tensor:
    slots = max(1, problem.layout.page_size // stride)
    shape = (problem.k.shape[0], slots, heads, width)
    return torch.full(shape, torch.nan, dtype=problem.k.dtype)


def done_in(problem: Problem, s: int, begin: int, end: int, length: int, stride: int):
    positions, cu = torch.arange(begin, end), torch.tensor([0, end - begin], dtype=torch.int32)
    table, page = problem.keys.page_table[s : s + 1], problem.layout.page_size
    return completed_blocks(cu, positions, table, length, page, stride)


def entries_of(problem: Problem, means: torch.Tensor, s: int, length: int, stride: int):
    """[n, Hkv, width] of a sequence, each from the page of its window's last token."""
    page, table = problem.layout.page_size, problem.keys.page_table[s].long()
    last = torch.arange(length - 1, max(LENGTHS[s], length - 1), stride)
    slot = last % page // stride if means.shape[1] > 1 else last * 0
    return means[table[last // page], slot]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("length", "stride", "page"), GEOMETRY)
@pytest.mark.parametrize(("dim", "v_dim"), [(40, 24), (32, 34)])
def test_means(
    isa: str, dtype: torch.dtype, length: int, stride: int, page: int, dim: int, v_dim: int
) -> None:
    problem = make(LENGTHS, [1] * 5, page=page, dtype=dtype, dim=dim, v_dim=v_dim)
    means = fresh(problem, stride, 2, dim + v_dim)
    for s, end in enumerate(LENGTHS):
        done = done_in(problem, s, 0, end, length, stride)
        window_means(problem.layout, problem.k, problem.v, means, done)
    written = 0
    for s, both in enumerate(problem.dense):
        found = entries_of(problem, means, s, length, stride).double()
        tokens = torch.cat(both, dim=-1).double()
        starts = range(0, tokens.shape[0] - length + 1, stride)
        assert found.shape[0] == len(starts)
        for each, start in zip(found, starts, strict=True):
            truth = tokens[start : start + length].mean(0)
            limit = torch.finfo(dtype).eps * 0.51 * truth.abs() + 5e-7
            assert bool(((each - truth).abs() <= limit).all())
        written += len(starts)
    assert int((~means.isnan()).all(-1).all(-1).sum()) == written  # the rest is as it was


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("length", "stride", "page"), GEOMETRY)
def test_neither_cuts_nor_pages_change_a_bit(
    isa: str, dtype: torch.dtype, length: int, stride: int, page: int
) -> None:
    whole = make(LENGTHS, [1] * 5, page=256, dtype=dtype, v_dim=40)
    means = fresh(whole, stride, 2, 72)
    window_means(whole.layout, whole.k, whole.v, means, done_in(whole, 0, 0, 300, length, stride))
    expected = entries_of(whole, means, 0, length, stride)
    problem = make(LENGTHS, [1] * 5, page=page, dtype=dtype, v_dim=40, shuffle=3)
    cuts = [0, 1, 15, 16, 17, 40, 63, 64, 65, 100, 128, 200, 299, 300]
    pieces = fresh(problem, stride, 2, 72)
    for begin, end in pairwise(cuts):
        done = done_in(problem, 0, begin, end, length, stride)
        window_means(problem.layout, problem.k, problem.v, pieces, done)
    assert torch.equal(entries_of(problem, pieces, 0, length, stride), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_keys_alone_and_some_heads(isa: str, dtype: torch.dtype) -> None:
    problem = make(LENGTHS, [1] * 5, dtype=dtype)
    done = done_in(problem, 0, 0, 300, 32, 16)
    both, keys = fresh(problem, 16, 2, 64), fresh(problem, 16, 2, 32)
    window_means(problem.layout, problem.k, problem.v, both, done)
    window_means(problem.layout, problem.k, problem.v, keys, done)
    assert torch.equal(keys.nan_to_num(), both[..., :32].nan_to_num())
    wide_k, wide_v = (torch.cat([x * 0 + 7, x, x * 0], dim=1) for x in (problem.k, problem.v))
    some = fresh(problem, 16, 2, 64)
    window_means(problem.layout, wide_k[:, 2:4], wide_v[:, 2:4], some, done)
    assert torch.equal(some.nan_to_num(), both.nan_to_num())
    plain = fresh(problem, 16, 2, 64)
    WINDOW_MEANS.reference(problem.layout, wide_k[:, 2:4], wide_v[:, 2:4], plain, done)
    assert torch.allclose(plain.nan_to_num(), both.nan_to_num(), rtol=1e-2)


def test_what_lies_behind_the_window_does_not_matter(isa: str) -> None:
    """The rest of the last page is NaN, as a former owner may have left it."""
    problem = make([17], [1])
    means = fresh(problem, 1, 2, 64)
    window_means(problem.layout, problem.k, problem.v, means, done_in(problem, 0, 0, 17, 5, 1))
    assert bool(means[problem.keys.page_table[0, 0].long(), 4:17].isfinite().all())


def test_means_by_head(isa: str) -> None:
    """Those of a head side by side are the same numbers."""
    problem, (length, stride, dim) = make(LENGTHS, [1] * 5, page=32, dim=40), (16, 8, 40)
    done = done_in(problem, 0, 0, LENGTHS[0], length, stride)
    expected = fresh(problem, stride, 2, dim + 32)
    pages, *shape = expected.shape
    apart = problem.layout.allocate_field(pages, shape, expected.dtype, by_head=True)
    apart.fill_(torch.nan)
    assert apart.shape == expected.shape and apart[:, :, 1].is_contiguous()
    for means in (expected, apart):
        window_means(problem.layout, problem.k, problem.v, means, done)
    assert torch.equal(apart.nan_to_num(7), expected.nan_to_num(7))
    assert not means.isnan().all()


def test_doors() -> None:
    problem = make(LENGTHS, [1] * 5)
    done = done_in(problem, 0, 0, 300, 32, 16)
    means = fresh(problem, 16, 2, 64)
    layout, k, v = problem.layout, problem.k, problem.v
    for bad in (means[..., :40], means[:, :2], means.double(), means[:, :, :1]):
        with pytest.raises(ValueError, match="window_means: means must be"):
            window_means(layout, k, v, bad, done)
    with pytest.raises(ValueError, match="multiple of their stride"):
        done_in(problem, 0, 0, 300, 40, 16)
    with pytest.raises(ValueError, match="divide or be divided by the page size"):
        done_in(problem, 0, 0, 300, 48, 24)
    with pytest.raises(ValueError, match="at least 16"):
        completed_blocks(problem.keys.cu_rows, torch.arange(5), problem.keys.page_table, 8, 64)
    assert isinstance(replace(done, stride=16), CompletedBlocks)
