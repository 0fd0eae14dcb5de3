"""Selection of blocks: exactly the reference's lists, in one split or several, in any order."""

from __future__ import annotations

import pytest
import torch

from saccade.kernels.select import Candidates, cuda, reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
pytestmark = pytest.mark.usefixtures("on_shim")


def problem(
    lengths: list[int],
    chunks: list[int],
    dim: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    block: int = 16,
    page: int = 64,
    dtype: torch.dtype = torch.float32,
):
    """Whole numbers, so that scores of any order of sums are exact and many are equal."""
    per_seq = [-(-length // page) for length in lengths]
    table = torch.full((len(lengths), max(per_seq) + 1), -1, dtype=torch.int32)
    order, used = torch.randperm(sum(per_seq) + 1).int(), 0
    for s, count in enumerate(per_seq):
        table[s, :count] = order[used : used + count]
        used += count
    slots = max(1, page // block)
    means = torch.randint(-2, 3, (sum(per_seq) + 1, slots, kv_heads, dim)).to(dtype)
    q = torch.randint(-2, 3, (sum(chunks), heads, dim)).to(dtype)
    cu = torch.tensor([0, *torch.tensor(chunks).cumsum(0).tolist()], dtype=torch.int32)
    positions = torch.cat([torch.arange(a - c, a) for a, c in zip(lengths, chunks, strict=True)])
    return q, means, Candidates(cu, positions, table, block, page)


def check(q: torch.Tensor, means: torch.Tensor, candidates: Candidates, topk: int) -> torch.Tensor:
    assert cuda.supports(q, means, candidates, topk) is None
    got = cuda.select_blocks(q, means, candidates, topk)
    assert torch.equal(got, reference.select_blocks(q, means, candidates, topk))
    return got


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("topk", [0, 1, 3, 40])
@pytest.mark.parametrize(("block", "page"), [(16, 64), (64, 64), (128, 64), (32, 16)])
def test_lists(dtype: torch.dtype, topk: int, block: int, page: int) -> None:
    """Ragged rows of several sequences, one of them without rows, one of a single token."""
    check(*problem([2900, 700, 90, 1], [21, 3, 0, 1], block=block, page=page, dtype=dtype), topk)


@pytest.mark.parametrize("dim", [8, 40, 128, 200])
@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 2), (5, 1), (2, 2), (32, 1)])
def test_shapes(dim: int, heads: int, kv_heads: int) -> None:
    check(*problem([1500, 130], [13, 2], dim=dim, heads=heads, kv_heads=kv_heads), 5)


@pytest.mark.parametrize("splits", [1, 2, 5])
@pytest.mark.parametrize("topk", [4, 100])
def test_splits(splits: int, topk: int, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the candidates are cut, the lists are the same; counters end as zeros."""
    monkeypatch.setattr(cuda, "splits_of", lambda programs, blocks: splits)
    made = []
    zeros = torch.Tensor.new_zeros

    def kept(*arguments, **options) -> torch.Tensor:
        made.append(zeros(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(torch.Tensor, "new_zeros", kept)
    q, means, candidates = problem([6000, 4100], [1, 2])
    got = cuda.select_blocks(q, means, candidates, topk)
    counters = made[-1]
    assert torch.equal(got, reference.select_blocks(q, means, candidates, topk))
    assert counters.dtype == torch.int32 and not counters.any()


def test_ties_go_to_later_blocks() -> None:
    q, means, candidates = problem([1000], [1])
    got = check(q, torch.ones_like(means), candidates, 3)
    assert got[0, 0].tolist() == [59, 60, 61, 62]


def test_nan_and_infinity_never_choose() -> None:
    """-0 and 0 are equal scores; blocks of NaN or -inf are left out even where fewer stay."""
    q, means, candidates = problem([400], [2], heads=2)
    q.fill_(1.0)
    means.fill_(0.0)
    means[candidates.page_table[0, 1].long()] = torch.nan
    means[candidates.page_table[0, 2].long(), 1] = -torch.inf
    means[candidates.page_table[0, 3].long(), 0] = torch.inf
    means[candidates.page_table[0, 4].long()] = -0.0
    got = check(q, means, candidates, 2)
    assert got[0, 0].tolist() == [12, 23, 24]
    kept = check(q, means, candidates, 30)[0, 0]
    assert not set(kept.tolist()) & {4, 5, 6, 7, 9}


def test_missing_pages() -> None:
    """Evicted pages (-1), and ids that no page has, are no candidates."""
    q, means, candidates = problem([700], [3])
    candidates.page_table[0, 2:4] = -1
    got = check(q, means, candidates, 40)
    assert not set(got.flatten().tolist()) & set(range(8, 16))
    candidates.page_table[0, 2:4] = 2**30
    assert torch.equal(cuda.select_blocks(q, means, candidates, 40), got)


def test_strides() -> None:
    """q as a part of a wider projection."""
    q, means, candidates = problem([700], [9])
    wide = torch.zeros(9, 7, 64)
    wide[:, 2:6] = q
    check(wide[:, 2:6], means, candidates, 3)


def test_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """256 blocks, the most there may be, out of two splits."""
    monkeypatch.setattr(cuda, "splits_of", lambda programs, blocks: 2)
    check(*problem([5000], [1], heads=2), 256)


def test_refusals() -> None:
    q, means, candidates = problem([100], [1], heads=33, kv_heads=1)
    assert "33" in str(q.shape[1]) and "32 query heads" in str(
        cuda.supports(q, means, candidates, 1)
    )
    q, means, candidates = problem([100], [1], dim=2000)
    assert "shared memory" in str(cuda.supports(q, means, candidates, 1))


def test_splits_fill_the_gpu() -> None:
    """One row of a long context is cut; a prefill is not; short contexts are not."""
    assert cuda.splits_of(8, 8192) == 32
    assert cuda.splits_of(1000, 8192) == 1
    assert cuda.splits_of(8, 300) == 1
