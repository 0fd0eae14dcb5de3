"""Values that are channels of the keys, and attention over summaries: every instruction set."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from saccade.kernels.attend import BlockLists, attend
from saccade.kernels.compressed import COMPRESSED, ListRule, compressed
from saccade.kernels.linear import linear, linear_heads, pack_heads
from saccade.kernels.select import Candidates
from saccade.kernels.testing import within_budget

from .paged import DTYPES, Problem, make
from .test_blocks import means_of

RULE = ListRule(5, first=1, recent=2)


def latent(dim: int = 48, v_dim: int = 40, **options) -> tuple[Problem, Problem]:
    """A problem whose values are the first v_dim channels of its keys, stored once and twice."""
    lengths, chunks = [2500, 130, 64, 7, 1], [150, 130, 1, 2, 1]
    once = make(lengths, chunks, kv_heads=2, heads=6, dim=dim, v_dim=0, **options)
    twice = make(lengths, chunks, kv_heads=2, heads=6, dim=dim, v_dim=v_dim, **options)
    page = once.layout.page_size
    v = once.layout.gather_keys(once.k, torch.arange(once.k.shape[0]))[..., :v_dim]
    unit = once.layout.unit(once.k.dtype)
    shape = (once.k.shape[0], page // unit, unit, 2, v_dim)
    twice.v.copy_(v.view(shape).permute(0, 3, 1, 4, 2).nan_to_num())
    return once, replace(twice, q=once.q, k=once.k)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("page", [16, 64, 256])
@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize(("dim", "v_dim"), [(48, 40), (64, 48)])  # the second one fits tiles
def test_values_in_the_keys_are_values(
    isa: str, dtype: torch.dtype, page: int, window: int | None, dim: int, v_dim: int
) -> None:
    """Bit by bit what values of their own give, whatever lies behind the last key."""
    once, twice = latent(dim, v_dim, page=page, dtype=dtype)
    out, lse = once.seeing(window=window).having(value_dim=v_dim).run()
    expected, expected_lse = twice.seeing(window=window).run()
    assert torch.equal(out, expected) and torch.equal(lse, expected_lse)
    assert bool(out.isfinite().all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_in_the_keys_of_listed_blocks(isa: str, dtype: torch.dtype) -> None:
    once, twice = latent(64, 48, dtype=dtype)
    rows = once.q.shape[0]
    ids = torch.tensor([[[0, 3, 7], [1, 3, 9]]], dtype=torch.int32)
    lists = BlockLists(ids, torch.zeros(rows, dtype=torch.int32), 32)
    out, _ = once.seeing(blocks=lists).having(value_dim=48).run()
    expected, _ = twice.seeing(blocks=lists).run()
    assert torch.equal(out, expected)


@pytest.mark.parametrize("value_dim", [0, 49, -1])
def test_the_values_must_lie_in_the_keys(value_dim: int) -> None:
    once, twice = latent()
    with pytest.raises(ValueError, match=r"value_dim must be 1 \.\. 48"):
        once.having(value_dim=value_dim).run()
    with pytest.raises(ValueError, match="of pages without values"):
        attend(twice.layout, twice.q, twice.k, twice.v, twice.keys, 1.0, value_dim=8)


def summaries(block: int, page: int, dtype: torch.dtype, dim: int = 48, heads: int = 12):
    lengths, chunks = [1700, 300, block, block - 1, 5], [70, 33, 1, 1, 5]
    problem = make(lengths, chunks, heads=heads, page=page, dtype=dtype, dim=dim)
    keys = problem.keys
    where = Candidates(keys.cu_rows, keys.positions, keys.page_table, block, page)
    return problem.q, means_of(problem, lengths, block), where


GEOMETRY = [(16, 64), (64, 64), (128, 64), (32, 256), (16, 16)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("block", "page"), GEOMETRY)
@pytest.mark.parametrize("dim", [48, 34])
def test_compressed(isa: str, dtype: torch.dtype, block: int, page: int, dim: int) -> None:
    q, means, where = summaries(block, page, dtype, dim)
    found = compressed(q, means, where, RULE, 0.2, dim - 8)
    plain = COMPRESSED.reference(q, means, where, RULE, 0.2, dim - 8)
    exact = COMPRESSED.reference(q.double(), means.double(), where, RULE, 0.2, dim - 8)
    within_budget(found[0], plain[0], exact[0])
    assert torch.equal(found[1] == -torch.inf, plain[1] == -torch.inf)
    assert torch.allclose(found[1], exact[1].float(), atol=1e-5)
    # Lists may differ where weights are equal but for rounding; hardly ever for random ones.
    assert float((found[2] != exact[2]).float().mean()) < 0.005
    check_lists(found[2], where.positions // block)


def check_lists(ids: torch.Tensor, own: torch.Tensor) -> None:
    """Ascending, padded, with the blocks that must be there."""
    for row, last in zip(ids.tolist(), own.tolist(), strict=True):
        for each in row:
            known = [block for block in each if block >= 0]
            assert len(known) == min(RULE.listed, last + 1)
            assert each == sorted(set(known)) + [-1] * (RULE.listed - len(known))
            assert {0, last, max(last - 1, 0)} <= set(known)


def test_before_the_first_complete_block_there_is_nothing(isa: str) -> None:
    q, means, where = summaries(16, 64, torch.float32)
    out, lse, _ = compressed(q, means, where, RULE, 0.2, 40)
    early = where.positions < 15
    assert bool(early.any()) and bool((out[early] == 0).all())
    assert bool((lse[early] == -torch.inf).all()) and bool(lse[~early].isfinite().all())


def test_equal_weights_choose_the_later_block(isa: str) -> None:
    q, means, where = summaries(16, 64, torch.float32)
    _, _, ids = compressed(torch.zeros_like(q), means.nan_to_num(), where, RULE, 1.0, 40)
    rows = where.positions >= 16 * 12
    own = where.positions[rows] // 16
    expected = torch.stack([own * 0, *(own - back for back in (3, 2, 1, 0))], dim=-1).int()
    assert torch.equal(ids[rows], expected[:, None].expand(-1, 2, -1))


def test_rows_between_choose_nothing(isa: str) -> None:
    q, means, where = summaries(16, 64, torch.float32)
    all_rows = compressed(q, means, where, RULE, 0.2, 40)
    some = compressed(q, means, where, replace(RULE, every=4), 0.2, 40)
    leads = where.positions % 4 == 0
    assert torch.equal(some[2][leads], all_rows[2][leads])
    assert bool((some[2][~leads] == -1).all()) and torch.equal(some[0], all_rows[0])


def test_a_planted_block_is_chosen(isa: str) -> None:
    q, means, where = summaries(16, 64, torch.float32, heads=4)
    plant = means.clone()
    page = where.page_table[0, 20 * 16 // 64].long()
    plant[page, 20 % 4] = q[69].view(2, 2, -1).sum(1) * 10
    assert bool((compressed(q, plant, where, RULE, 0.2, 40)[2][69] == 20).any(-1).all())


def test_a_row_does_not_depend_on_the_others(isa: str, use_threads) -> None:
    q, means, where = summaries(16, 64, torch.bfloat16)
    together = compressed(q, means, where, RULE, 0.2, 40)
    use_threads(3)
    for row in (0, 17, 69):
        cu = torch.tensor([0, 1], dtype=torch.int32)
        alone = Candidates(cu, where.positions[row : row + 1], where.page_table[:1], 16, 64)
        found = compressed(q[row : row + 1], means, alone, RULE, 0.2, 40)
        assert all(torch.equal(a[0], b[row]) for a, b in zip(found, together, strict=True))


def test_doors() -> None:
    q, means, where = summaries(16, 64, torch.float32)
    with pytest.raises(ValueError, match="do not fit"):
        compressed(q[..., :40], means, where, RULE, 1.0, 8)
    with pytest.raises(ValueError, match="share a dtype"):
        compressed(q.bfloat16(), means, where, RULE, 1.0, 8)
    with pytest.raises(ValueError, match="positions must be"):
        compressed(q[:3], means, where, RULE, 1.0, 8)
    with pytest.raises(ValueError, match="value_dim 49"):
        compressed(q, means, where, RULE, 1.0, 49)
    for bad in ({"recent": 0}, {"first": -1}, {"every": 0}, {"listed": 2}, {"listed": 257}):
        with pytest.raises(ValueError, match="ListRule"):
            replace(RULE, **bad)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [0, 1, 5, 70])
@pytest.mark.parametrize(("width", "outs"), [(32, 64), (12, 24), (160, 33)])
def test_linear_of_every_head(
    isa: str, dtype: torch.dtype, rows: int, width: int, outs: int
) -> None:
    """Each head is a linear layer, bit by bit; what lies between the heads stays as it is."""
    x = torch.randn(rows, 5, width + 6).to(dtype)[..., 2 : width + 2]
    weight = pack_heads(torch.randn(5, outs, width).to(dtype))
    room = torch.full((rows, 5, outs + 3), 7.0, dtype=dtype)
    linear_heads(x, weight, room[..., :outs])
    assert bool((room[..., outs:] == 7.0).all())
    for h in range(5):
        assert torch.equal(room[:, h, :outs], linear(x[:, h], weight.head(h)))


def test_doors_of_linear_heads() -> None:
    weight, x = pack_heads(torch.randn(2, 8, 4)), torch.randn(3, 2, 4)
    with pytest.raises(ValueError, match=r"needs x \[T, 2, 4\] and out \[T, 2, 8\]"):
        linear_heads(x, weight, torch.zeros(3, 2, 9))
    with pytest.raises(ValueError, match=r"needs x \[T, 2, 4\]"):
        linear_heads(x[:, :1], weight, torch.zeros(3, 2, 8))
    with pytest.raises(ValueError, match=r"out torch\.bfloat16"):
        linear_heads(x, weight, torch.zeros(3, 2, 8, dtype=torch.bfloat16))
