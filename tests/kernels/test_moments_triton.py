"""Moments of keys and far mass in Triton, interpreted, against their references."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from saccade.kernels.bounds.reference import key_bounds
from saccade.kernels.moments import KINDS, MomentRule, moment_blocks
from saccade.kernels.moments import reference as by_torch
from saccade.kernels.moments import triton as by_triton
from saccade.kernels.select import Candidates
from saccade.kernels.store import RowLayout
from saccade.kernels.summarize import completed_blocks, slots_per_page
from saccade.kernels.testing import within_budget

from .paged import Problem, make

pytestmark = [
    pytest.mark.usefixtures("interpreted"),
    pytest.mark.filterwarnings(
        "ignore:invalid value", "ignore:All-NaN", "ignore:Conversion of an array"
    ),
]
LENGTHS, CHUNKS = [340, 70, 5], [4, 1, 2]


def whole(lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """cu_rows and positions of all tokens."""
    cu = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    return cu, torch.cat([torch.arange(length) for length in lengths])


def of_rows(**options: Any) -> Problem:
    return make(LENGTHS, CHUNKS, layout_of=RowLayout, dim=36, **options)


def field(problem: Problem, rule: MomentRule) -> torch.Tensor:
    """A page field of NaN."""
    dim, slots = problem.q.shape[2], slots_per_page(rule.block, problem.layout.page_size)
    shape = (problem.k.shape[0], slots, problem.k.shape[1], rule.entry_rows(dim), dim)
    return torch.full(shape, torch.nan)


def moments_of(problem: Problem, rule: MomentRule) -> torch.Tensor:
    """The entries of every block of all sequences, by the reference."""
    moments = field(problem, rule)
    done = moment_blocks(*whole(LENGTHS), problem.keys.page_table, rule.block)
    by_torch.key_moments(problem.layout, problem.k, moments, done, rule)
    return moments


@pytest.mark.parametrize(
    ("dtype", "block", "page"),
    [(torch.float32, 16, 64), (torch.float16, 64, 64), (torch.bfloat16, 32, 16)],
    ids=str,
)
@pytest.mark.parametrize(
    ("kind", "sinks"), [("blocks", 3), ("diagonal", 16), ("full", 0), ("full", 70)]
)
def test_moments(dtype: torch.dtype, block: int, page: int, kind: str, sinks: int) -> None:
    """The same entries are written, and they are those of the reference; nothing else is."""
    problem, rule = of_rows(page=page, dtype=dtype, size=2.0), MomentRule(kind, block, sinks)
    moments, wanted = field(problem, rule), moments_of(problem, rule)
    done = moment_blocks(*whole(LENGTHS), problem.keys.page_table, block)
    assert by_triton.supports(problem.layout, problem.k, moments, done, rule) is None
    by_triton.key_moments(problem.layout, problem.k, moments, done, rule)
    torch.testing.assert_close(moments, wanted, rtol=1e-4, atol=1e-5, equal_nan=True)
    assert not wanted.isnan().all()


@pytest.mark.parametrize("kind", KINDS)
def test_no_cut_and_no_page_size_changes_a_bit(kind: str) -> None:
    rule, found = MomentRule(kind, 32, 5), []
    for page, cuts in ((64, [330]), (16, [1, 31, 32, 33, 330]), (256, [200, 201, 330])):
        problem = make([330], [1], page=page, dim=20, shuffle=page, layout_of=RowLayout)
        moments, begin = field(problem, rule), 0
        for end in cuts:
            cu = torch.tensor([0, end - begin], dtype=torch.int32)
            done = moment_blocks(cu, torch.arange(begin, end), problem.keys.page_table, 32)
            if done.most:
                by_triton.key_moments(problem.layout, problem.k, moments, done, rule)
            begin = end
        last = torch.arange(32, 330, 32) - 1
        slot = last % page // 32 if page > 32 else last * 0
        found.append(moments[problem.keys.page_table[0, last // page].long(), slot])
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    assert not found[0].isnan().any()


def test_large_means_do_not_drown_the_variance() -> None:
    """Keys often share a large component: sums of squares would lose all digits."""
    for kind in KINDS:
        problem, rule = of_rows(), MomentRule(kind, 64, 0)
        problem.k += torch.linspace(-300, 300, 36)
        moments, wanted = field(problem, rule), moments_of(problem, rule)
        done = moment_blocks(*whole(LENGTHS), problem.keys.page_table, 64)
        by_triton.key_moments(problem.layout, problem.k, moments, done, rule)
        torch.testing.assert_close(moments, wanted, rtol=1e-3, atol=2e-3, equal_nan=True)


def entries_of(problem: Problem, kind: str, block: int, sinks: int) -> tuple[MomentRule, Any]:
    """The rule, and what it makes of the keys, or their bounds."""
    rule = MomentRule("blocks" if kind == "bounds" else kind, block, sinks)
    if kind != "bounds":
        return rule, moments_of(problem, rule)
    entries = field(problem, rule).to(problem.k.dtype)
    place = (problem.keys.page_table, block, problem.layout.page_size)
    key_bounds(problem.layout, problem.k, entries, completed_blocks(*whole(LENGTHS), *place))
    return rule, entries


def where(problem: Problem, block: int) -> Candidates:
    keys = problem.keys
    size = problem.layout.page_size
    return Candidates(keys.cu_rows, keys.positions, keys.page_table, block, size)


@pytest.mark.parametrize(
    ("dtype", "block", "page", "sinks", "extra"),
    [
        (torch.float32, 16, 64, 5, 7),
        (torch.float16, 64, 64, 70, 0),
        (torch.bfloat16, 32, 16, 0, 9),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", [*KINDS, "bounds"])
def test_mass(dtype: torch.dtype, block: int, page: int, sinks: int, extra: int, kind: str) -> None:
    """Within the error budget of the same arithmetic in fp32; heads in odd groups."""
    problem = of_rows(heads=10, page=page, dtype=dtype)
    rule, entries = entries_of(problem, kind, block, sinks)
    args = (where(problem, block), rule, kind, block + extra, 36**-0.5)
    assert by_triton.weighs(problem.q, entries, *args) is None
    found = by_triton.far_mass(problem.q, entries, *args)
    plain = by_torch.far_mass(problem.q, entries, *args)
    truth = by_torch.far_mass(problem.q.double(), entries.double(), *args)
    assert found.shape == (7, 10) and bool((found.isfinite() == plain.isfinite()).all())
    within_budget(found, plain, truth, factor=4.0)
    border = problem.keys.positions - (block + extra) + 1
    assert bool((found[border <= sinks] == -torch.inf).all())


@pytest.mark.parametrize("kind", [*KINDS, "bounds"])
def test_a_row_weighs_the_same_in_any_batch(kind: str) -> None:
    problem = of_rows(dtype=torch.float16)
    rule, entries = entries_of(problem, kind, 32, 3)
    mass = by_triton.far_mass(problem.q, entries, where(problem, 32), rule, kind, 40, 0.2)
    one, keys = torch.tensor([0, 1], dtype=torch.int32), problem.keys
    for s, (_, end) in enumerate(problem.bounds()):
        place = (keys.positions[end - 1 : end], keys.page_table[s : s + 1])
        alone = Candidates(one, *place, 32, 64)
        found = by_triton.far_mass(problem.q[end - 1 : end], entries, alone, rule, kind, 40, 0.2)
        assert torch.equal(found[0], mass[end - 1])


@pytest.mark.parametrize("kind", [*KINDS, "bounds"])
def test_what_is_not_finite_is_no_small_mass(kind: str) -> None:
    """NaN, or too much to measure, for a query that is not finite; NaN where a page is missing."""
    problem = of_rows()
    rule, entries = entries_of(problem, kind, 16, 3)
    args = (where(problem, 16), rule, kind, 40, 0.2)
    for row, bad in enumerate((torch.nan, torch.inf, -torch.inf)):
        problem.q[row, 1, 5] = bad
    mass = by_triton.far_mass(problem.q, entries, *args)
    assert not bool((mass[:3, 1] < torch.inf).any()) and bool(mass[3].isfinite().all())
    assert bool(mass[:3, [0, 2, 3]].isfinite().all())
    problem.keys.page_table[0, 4] = -1  # of the last entries of the first sequence
    mass = by_triton.far_mass(problem.q, entries, *args)
    assert bool(mass[3].isnan().all()) and not mass[4].isnan().any()


def test_what_is_left_to_others() -> None:
    problem, rule = make([70], [1]), MomentRule("blocks", 64, 0)
    moments = torch.zeros((problem.k.shape[0], 1, 2, 2, 32))
    done = moment_blocks(problem.keys.cu_rows, problem.keys.positions, problem.keys.page_table, 64)
    args = (problem.layout, problem.k, moments, done, rule)
    assert "CPU's layout" in str(by_triton.supports(*args))
    args = (where(problem, 64), rule, "blocks", 64, 1.0)
    assert "256 channels" in str(
        by_triton.weighs(torch.zeros(1, 2, 512), torch.zeros(3, 1, 2, 2, 512), *args)
    )
