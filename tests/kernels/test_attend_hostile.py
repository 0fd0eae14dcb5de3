"""NaN, wrong page ids, memory of former owners: what must not spread, what must not crash."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from saccade.kernels.attend import BlockLists

from .paged import DTYPES, make, random_lists, same

NAN = float("nan")
OPTIONS = (
    {},
    {"softcap": 5.0},
    {"sink_logits": torch.zeros(4)},
)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "softcap", "sinks"])
def test_nan_in_q_stays_in_its_row(isa, dtype, options):
    """A NaN in the query of one head gives NaN for this row and head only."""
    problem = make([200, 2100], [30, 3], dtype=dtype).having(**options)
    out, lse = problem.run()
    q = problem.q.clone()
    q[7, 2, 5] = q[31, 0, 0] = NAN
    bad_out, bad_lse = replace(problem, q=q).run()
    bad = torch.zeros((33, 4), dtype=torch.bool)
    bad[7, 2] = bad[31, 0] = True
    assert bad_out[bad].isnan().all() and bad_lse[bad].isnan().all()
    assert same((bad_out[~bad], bad_lse[~bad]), (out[~bad], lse[~bad]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "softcap", "sinks"])
def test_nan_in_a_key(isa, dtype, options):
    """Rows that see a NaN key say so; rows before it do not notice."""
    problem = make([200], [150], dtype=dtype).having(**options)
    out, lse = problem.run()
    page, offset = int(problem.keys.page_table[0, 100 // 64]), 100 % 64
    problem.k[page, 0, 3, offset, 0] = NAN
    bad_out, bad_lse = problem.run()
    assert bad_out[50:, :2].isnan().all() and bad_lse[50:, :2].isnan().all()
    assert same((bad_out[:50], bad_lse[:50]), (out[:50], lse[:50]))
    assert same((bad_out[:, 2:], bad_lse[:, 2:]), (out[:, 2:], lse[:, 2:]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("page", [16, 64, 256])
def test_former_owners_leave_nothing(isa, dtype, page):
    """All pages held NaN; what is visible is finite, in every phase and under every mask."""
    problem = make([1, page + 1, 3 * page - 1, 700], [1, 1, 2, 90], page=page, dtype=dtype)
    assert problem.k.isnan().any()
    for each in (
        problem,
        problem.seeing(window=20, sinks=2),
        problem.seeing(blocks=random_lists(problem, 32, 4)),
        problem.having(softcap=3.0),
    ):
        assert all(x[x != -torch.inf].isfinite().all() for x in each.run())


@pytest.mark.parametrize("wrong", [-1, -2, -(2**31), 10**6, 2**31 - 1])
@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "softcap", "sinks"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_absent_pages(isa, dtype, wrong, options):
    """Page ids outside the pool name no page: their keys are absent, nobody reads there."""
    problem = make([500], [40], dtype=dtype).having(**options)
    table = problem.keys.page_table.clone()
    table[0, 2] = wrong

    def listed(*blocks: int) -> BlockLists:
        ids = torch.tensor(blocks, dtype=torch.int32).expand(1, 4, -1).contiguous()
        return BlockLists(ids, torch.zeros(40, dtype=torch.int32), 64)

    present = problem.seeing(blocks=listed(0, 1, *range(3, 8))).run()
    assert same(problem.seeing(page_table=table, blocks=listed(*range(8))).run(), present)
    # Without lists sums are taken in other steps.
    for got, expected in zip(problem.seeing(page_table=table).run(), present, strict=True):
        torch.testing.assert_close(got, expected)


def test_no_page_at_all(isa):
    """A table without columns or without any valid id gives empty rows."""
    problem = make([500], [40])
    for table in (torch.empty((1, 0), dtype=torch.int32), torch.full((1, 8), -1).int()):
        out, lse = problem.seeing(page_table=table).run()
        assert (out == 0).all() and (lse == -torch.inf).all()


def test_negative_positions(isa):
    """A row before the beginning sees nothing."""
    problem = make([70], [3])
    out, lse = problem.seeing(positions=torch.tensor([-1, -5, -(2**40)])).run()
    assert (out == 0).all() and (lse == -torch.inf).all()
    for options in ({}, {"window": 9}):  # nor do those of a row that sees something concern it
        positions = torch.tensor([-(2**40), 60, -(2**33)])
        lse = problem.seeing(positions=positions, **options).run()[1]
        assert (lse[[0, 2]] == -torch.inf).all() and lse[1].isfinite().all()


def test_long_lists_that_go_on_for_ever(isa):
    """Blocks far beyond any page, in no order, some of them twice: all others are seen as ever."""
    problem = make([3000], [6], dtype=torch.bfloat16)
    rows = torch.zeros(6, dtype=torch.int32)
    known = torch.arange(47, dtype=torch.int32).view(1, 1, -1).expand(1, 2, -1)
    far = torch.tensor([10**6, 10**8, 2**31 - 2, 2**31 - 1] * 8, dtype=torch.int32)
    far = far.view(1, 1, -1).expand(1, 2, -1)
    first, later = known[..., :40], known[..., 40:]
    plain = problem.seeing(blocks=BlockLists(first.contiguous(), rows, 64)).run()
    for ids in (torch.cat([first, far], dim=-1), torch.cat([first, far, later], dim=-1)):
        lists = BlockLists(ids.contiguous(), rows, 64)
        out, lse = problem.seeing(blocks=lists).run()
        assert torch.isfinite(out.float()).all() and torch.isfinite(lse).all()
        if ids.shape[-1] == 40 + 32:
            assert same((out, lse), plain)
