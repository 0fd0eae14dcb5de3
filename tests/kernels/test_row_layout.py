"""The GPU layout: every reference gives over its pages what it gives over those of the CPU."""

from __future__ import annotations

import pytest
import torch

from saccade.kernels.attend import ATTEND, AttendCall
from saccade.kernels.bounds import KEY_BOUNDS
from saccade.kernels.moments import KEY_MOMENTS, MomentRule, moment_blocks
from saccade.kernels.select import Candidates
from saccade.kernels.select_keys import SELECT_KEYS, KeyRule
from saccade.kernels.store import WRITE_PAGES, PageLayout, RowLayout, WriteCall, write_pages
from saccade.kernels.summarize import BLOCK_MEANS, WINDOW_MEANS, completed_blocks

from .paged import DTYPES, Problem, make

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
LENGTHS, CHUNKS = [100, 17, 64], [20, 1, 5]


def both(dtype, v_dim=24, page=16) -> list[Problem]:
    """The same problem over either layout."""
    options = {"v_dim": v_dim, "page": page, "dtype": dtype}
    return [make(LENGTHS, CHUNKS, layout_of=each, **options) for each in (PageLayout, RowLayout)]


def equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


@every_dtype
def test_what_is_written_is_gathered(dtype):
    panels, rows = both(dtype)
    assert rows.k.shape == (*rows.k.shape[:2], 16, 32) and rows.v.shape[2:] == (16, 24)
    ids = torch.tensor([3, 0, 5])
    for ours, theirs in zip(
        rows.layout.gather(rows.k, rows.v, ids), panels.layout.gather(panels.k, panels.v, ids),
        strict=True,
    ):  # fmt: skip
        assert equal(ours, theirs)
    at = torch.tensor([[0, 15, 7], [1, 2, 3]])
    for ours, theirs in zip(
        rows.layout.gather_tokens(rows.k, rows.v, ids.expand(2, 3), at),
        panels.layout.gather_tokens(panels.k, panels.v, ids.expand(2, 3), at),
        strict=True,
    ):
        assert equal(ours, theirs)
    assert rows.layout.dims(rows.k, rows.v) == (32, 24) and rows.layout.key_dim(rows.k) == 32


@every_dtype
def test_a_page_that_begins_is_cleared(dtype):
    layout = RowLayout(16)
    k, v = (x.fill_(torch.nan) for x in layout.allocate(3, 2, 8, 4, dtype))
    new = torch.randn(3, 2, 8).to(dtype)
    write_pages(layout, k, v, new, new[..., :4], torch.tensor([16, -1, 17]))
    assert torch.equal(v[1, :, 0], new[0, :, :4]) and torch.equal(v[1, :, 1], new[2, :, :4])
    assert not v[1, :, 2:].any() and v[[0, 2]].isnan().all()
    write_pages(layout, k, v, new, new[..., :4], torch.tensor([33, 34, -1]), False)
    assert v[2, :, 0].isnan().all()


@every_dtype
def test_references_agree(dtype):
    """Attention, means, bounds, moments and selection."""
    panels, rows = both(dtype)
    found = []
    for problem in (panels, rows):
        keys, size = problem.keys, problem.layout.page_size
        out = ATTEND.reference(
            AttendCall(problem.layout, problem.q, problem.k, problem.v, keys, 0.2, dtype)
        )
        where = (keys.cu_rows, keys.positions, keys.page_table)
        done = completed_blocks(*where, 16, size)
        assert done.home.numel()
        means = torch.zeros((problem.k.shape[0], 1, 2, 32), dtype=dtype)
        BLOCK_MEANS.reference(problem.layout, problem.k, means, done)
        windows = torch.zeros((problem.k.shape[0], 1, 2, 56), dtype=dtype)
        WINDOW_MEANS.reference(problem.layout, problem.k, problem.v, windows, done)
        bounds = torch.zeros((problem.k.shape[0], 1, 2, 2, 32), dtype=dtype)
        KEY_BOUNDS.reference(problem.layout, problem.k, bounds, done)
        rule = MomentRule("blocks", 16, 0)
        moments = torch.zeros((problem.k.shape[0], 1, 2, rule.entry_rows(32), 32))
        KEY_MOMENTS.reference(problem.layout, problem.k, moments, moment_blocks(*where, 16), rule)
        chosen = SELECT_KEYS.reference(
            problem.layout, problem.q, problem.k, Candidates(*where, 16, size), KeyRule(3), 0.2,
            out[1],
        )  # fmt: skip
        found.append((*out, means, windows, bounds, moments, chosen))
    assert found[0][0].isfinite().all() and all(each.any() for each in found[0])
    # torch sums in the order of memory: equal up to the last bit.
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_cpu_kernels_refuse_and_say_why():
    """The compiled CPU kernels read panels; pages of the other layout are left to others."""
    rows = both(torch.float32)[1]
    slots = torch.zeros(1, dtype=torch.int64)
    new = torch.randn(1, 2, 32)
    call = WriteCall(rows.layout, rows.k, rows.v, new, new[..., :24], slots)
    reasons = WRITE_PAGES.refusals(call)
    assert reasons["cpu"] == "pages have the GPU's layout"
    with pytest.raises(ValueError, match="do not have RowLayout"):
        rows.layout.dims(*(PageLayout(16).allocate(1, 1, 8, 8, torch.float32)))
    with pytest.raises(ValueError, match="do not have PageLayout"):
        PageLayout(16).dims(rows.k, rows.v)


@every_dtype
@pytest.mark.parametrize("layout_of", [PageLayout, RowLayout])
def test_flat_fields_as_pages_of_keys(dtype, layout_of):
    """A page field holds keys of one head in the layout of the pages."""
    layout = layout_of(16)
    field = torch.zeros((4, 16 * 8), dtype=dtype)
    pages, none = layout.key_pages(field, 8)
    keys = torch.randn(5, 1, 8).to(dtype)
    write_pages(layout, pages, none, keys, keys[..., :0], torch.arange(5) + 32)
    assert torch.equal(layout.gather_keys(pages, torch.tensor([2]))[:5], keys)
    assert field[2].any() and not field[[0, 1, 3]].any()
