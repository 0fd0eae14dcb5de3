"""Moments of keys and the mass they foretell: every instruction set against the definition."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from saccade.kernels.bounds import key_bounds
from saccade.kernels.moments import (
    KINDS,
    MomentRule,
    far_mass,
    key_moments,
    moment_blocks,
)
from saccade.kernels.moments.reference import far_mass as mass_by_reference
from saccade.kernels.moments.reference import key_moments as moments_by_reference
from saccade.kernels.select import Candidates
from saccade.kernels.summarize import completed_blocks, slots_per_page
from saccade.kernels.testing import within_budget

from .paged import DTYPES, Problem, make
from .test_blocks import GEOMETRY

LENGTHS, CHUNKS = [900, 300, 5], [10, 1, 5]
SCALE = 40**-0.5


def whole(lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """cu_rows and positions of all tokens."""
    cu = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    return cu, torch.cat([torch.arange(length) for length in lengths])


def moments_of(
    problem: Problem, lengths: list[int], rule: MomentRule, write=key_moments
) -> torch.Tensor:
    """The page field after all blocks of all sequences are written; NaN where nothing belongs."""
    page, dim = problem.layout.page_size, problem.q.shape[2]
    done = moment_blocks(*whole(lengths), problem.keys.page_table, rule.block)
    shape = (problem.k.shape[0], slots_per_page(rule.block, page), problem.k.shape[1])
    moments = torch.full((*shape, rule.entry_rows(dim), dim), torch.nan)
    write(problem.layout, problem.k, moments, done, rule)
    return moments


def bounds_of(problem: Problem, lengths: list[int], block: int) -> torch.Tensor:
    page = problem.layout.page_size
    done = completed_blocks(*whole(lengths), problem.keys.page_table, block, page)
    shape = (problem.k.shape[0], slots_per_page(block, page), problem.k.shape[1], 2)
    bounds = torch.full((*shape, problem.q.shape[2]), torch.nan, dtype=problem.k.dtype)
    key_bounds(problem.layout, problem.k, bounds, done)
    return bounds


def candidates_of(problem: Problem, block: int) -> Candidates:
    keys = problem.keys
    return Candidates(
        keys.cu_rows, keys.positions, keys.page_table, block, problem.layout.page_size
    )


def entry(problem: Problem, moments: torch.Tensor, s: int, block: int, size: int) -> torch.Tensor:
    """[Hkv, rows, d] of one block of sequence s."""
    last, page = (block + 1) * size - 1, problem.layout.page_size
    slot = last % page // size if moments.shape[1] > 1 else 0
    return moments[problem.keys.page_table[s, last // page].long(), slot]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("block", "page"), GEOMETRY)
@pytest.mark.parametrize(
    ("kind", "sinks"), [("blocks", 3), ("diagonal", 16), ("full", 0), ("full", 70)]
)
def test_moments_are_those_of_the_keys(
    isa: str, dtype: torch.dtype, block: int, page: int, kind: str, sinks: int
) -> None:
    lengths = [40 * block % 1000, block - 1, block, 3 * block + 1]
    problem = make(lengths, [1] * 4, page=page, dtype=dtype, dim=36, size=2.0)
    rule = MomentRule(kind, block, sinks)
    moments = moments_of(problem, lengths, rule)
    written, spread, rows = 0, rule.spread(36), rule.entry_rows(36) - 1
    for s, (keys, _) in enumerate(problem.dense):
        for number in range(keys.shape[0] // block):
            found, end = entry(problem, moments, s, number, block), (number + 1) * block
            seen = keys[max(sinks, number * block if kind == "blocks" else 0) : end].double()
            written += 1
            if not seen.shape[0]:
                assert not found.any()
                continue
            centred = seen - seen.mean(0)
            covariance = torch.einsum("nhi,nhj->hij", centred, centred) / seen.shape[0]
            truth = covariance.diagonal(dim1=1, dim2=2)[:, None]
            if kind == "full":
                truth = torch.zeros(2, rows, 36, dtype=torch.float64)
                part = covariance[:, number % spread * rows :][:, :rows]
                truth[:, : part.shape[1]] = part
            close(found[:, 0], seen.mean(0))
            close(found[:, 1:], truth)
    assert int((~moments.isnan()).flatten(2).all(-1).sum()) == written
    if dtype != torch.float32:
        return
    plain = moments_of(problem, lengths, rule, moments_by_reference)
    torch.testing.assert_close(moments, plain, rtol=1e-4, atol=1e-5, equal_nan=True)


def close(found: torch.Tensor, truth: torch.Tensor) -> None:
    torch.testing.assert_close(found.double(), truth, rtol=2e-5, atol=5e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_large_means_do_not_drown_the_variance(isa: str, kind: str) -> None:
    """Keys often share a large component: sums of squares would lose all digits."""
    problem = make([2000], [1], dim=32)
    shift = torch.linspace(-300, 300, 32)
    for page in problem.keys.page_table[0, :32].long():
        problem.k[page, :, :, :, 0] += shift[None, :, None]
    rule = MomentRule(kind, 64, 0)
    keys = (problem.dense[0][0][:1984] + shift).double()
    found = entry(problem, moments_of(problem, [2000], rule), 0, 30, 64)
    seen = keys[1920:] if kind == "blocks" else keys
    covariance = torch.einsum("nhi,nhj->hij", *[seen - seen.mean(0)] * 2) / seen.shape[0]
    truth = covariance.diagonal(dim1=1, dim2=2)[:, None]
    if kind == "full":
        truth = covariance[:, 30 % 4 * 8 :][:, :8]
    torch.testing.assert_close(found[:, 1:].double(), truth, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_no_cut_and_no_page_size_changes_a_bit(isa: str, dtype: torch.dtype, kind: str) -> None:
    rule, found = MomentRule(kind, 32, 5), []
    for page, cuts in ((64, [1300]), (16, [1, 31, 32, 33, 640, 1300]), (256, [500, 501, 1300])):
        problem = make([1300], [1], page=page, dtype=dtype, dim=40, shuffle=page)
        slots = slots_per_page(32, page)
        moments = torch.full((problem.k.shape[0], slots, 2, rule.entry_rows(40), 40), torch.nan)
        begin = 0
        for end in cuts:
            cu = torch.tensor([0, end - begin], dtype=torch.int32)
            done = moment_blocks(cu, torch.arange(begin, end), problem.keys.page_table, 32)
            key_moments(problem.layout, problem.k, moments, done, rule)
            begin = end
        found.append(torch.stack([entry(problem, moments, 0, n, 32) for n in range(40)]))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def entries_of(
    problem: Problem, kind: str, block: int, sinks: int
) -> tuple[MomentRule, torch.Tensor]:
    if kind == "bounds":
        return MomentRule("blocks", block, sinks), bounds_of(problem, LENGTHS, block)
    rule = MomentRule(kind, block, sinks)
    return rule, moments_of(problem, LENGTHS, rule)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("block", "page"), GEOMETRY)
@pytest.mark.parametrize("kind", [*KINDS, "bounds"])
@pytest.mark.parametrize(("sinks", "extra"), [(5, 7), (200, 0)])
def test_mass(
    isa: str, dtype: torch.dtype, block: int, page: int, kind: str, sinks: int, extra: int
) -> None:
    """Within the error budget of the same arithmetic in fp32; heads in odd groups."""
    problem = make(LENGTHS, CHUNKS, heads=10, page=page, dtype=dtype, dim=40)
    rule, entries = entries_of(problem, kind, block, sinks)
    args = (candidates_of(problem, block), rule, kind, block + extra, SCALE)
    found = far_mass(problem.q, entries, *args)
    plain = mass_by_reference(problem.q, entries, *args)
    truth = mass_by_reference(problem.q.double(), entries.double(), *args)
    assert found.shape == (16, 10) and bool((found.isfinite() == plain.isfinite()).all())
    within_budget(found, plain, truth, factor=4.0)
    border = problem.keys.positions - (block + extra) + 1
    assert bool((found[border <= sinks] == -torch.inf).all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_row_weighs_more_than_its_bound(isa: str, dtype: torch.dtype) -> None:
    problem = make(LENGTHS, [400, 290, 5], dtype=dtype, dim=40, size=2.0)
    rule, entries = entries_of(problem, "bounds", 32, 7)
    window = 50
    args = (candidates_of(problem, 32), rule, "bounds", window, SCALE)
    bound = far_mass(problem.q, entries, *args)
    for (begin, end), (keys, _) in zip(problem.bounds(), problem.dense, strict=True):
        for row in range(begin, end, 7):
            far = keys[7 : max(int(problem.keys.positions[row]) - window + 1, 7)]
            far = far.double().repeat_interleave(2, dim=1)
            true = (torch.einsum("hd,nhd->hn", problem.q[row].double(), far) * SCALE).logsumexp(-1)
            assert bool((bound[row] >= true - 1e-4).all())


@pytest.mark.parametrize("kind", KINDS)
def test_normal_keys_weigh_what_is_foretold(isa: str, kind: str) -> None:
    """The estimate converges on the true mass as there are more keys."""
    errors = {}
    for length in (600, 9000):
        problem = make([length], [64], dim=32, kv_heads=4, seed=length)
        rule = MomentRule(kind, 64, 0)
        moments = moments_of(problem, [length], rule)
        mass = far_mass(problem.q, moments, candidates_of(problem, 64), rule, kind, 64, 32**-0.5)
        rows = torch.arange(64)
        scores = torch.einsum("thd,nhd->thn", problem.q, problem.dense[0][0]) * 32**-0.5
        hidden = torch.arange(length) > (length - 64 + rows - 64)[:, None]
        true = scores.masked_fill(hidden[:, None], -torch.inf).logsumexp(-1)
        errors[length] = float((mass - true).abs().mean())
    assert errors[9000] < 0.05 and errors[9000] < errors[600]


def test_one_outlier_is_invisible_to_moments_and_not_to_bounds(isa: str) -> None:
    """Why there is a safe test at all."""
    problem = make([2000], [1], heads=2, dim=32, size=0.3)
    key = problem.q[0, 0] * 40
    page = problem.keys.page_table[0, 10].long()
    problem.k[page, 0, :, 5, 0] = key
    rule = MomentRule("blocks", 64, 0)
    args = (candidates_of(problem, 64), rule)
    mass = far_mass(problem.q, moments_of(problem, [2000], rule), *args, "blocks", 64, 32**-0.5)
    bound = far_mass(problem.q, bounds_of(problem, [2000], 64), *args, "bounds", 64, 32**-0.5)
    true = float(problem.q[0, 0] @ key) * 32**-0.5
    assert float(mass[0, 0]) < true - 1 and float(bound[0, 0]) > true


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [*KINDS, "bounds"])
def test_a_row_weighs_the_same_in_any_batch(isa: str, dtype: torch.dtype, kind: str) -> None:
    problem = make(LENGTHS, [37, 3, 5], dtype=dtype, dim=40)
    rule, entries = entries_of(problem, kind, 32, 3)
    mass = far_mass(problem.q, entries, candidates_of(problem, 32), rule, kind, 40, SCALE)
    one, keys = torch.tensor([0, 1], dtype=torch.int32), problem.keys
    for s, (begin, end) in enumerate(problem.bounds()):
        for row in range(begin, end):
            place = (keys.positions[row : row + 1], keys.page_table[s : s + 1])
            alone = Candidates(one, *place, 32, 64)
            found = far_mass(problem.q[row : row + 1], entries, alone, rule, kind, 40, SCALE)
            assert torch.equal(found[0], mass[row])


@pytest.mark.parametrize("kind", [*KINDS, "bounds"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_query_that_is_not_finite_weighs_nan(isa: str, kind: str, bad: float) -> None:
    """NaN, or too much to measure: never a number that would pass for a small mass."""
    problem = make(LENGTHS, CHUNKS, dim=40)
    problem.q[3, 1, 5] = bad
    rule, entries = entries_of(problem, kind, 16, 3)
    mass = far_mass(problem.q, entries, candidates_of(problem, 16), rule, kind, 40, SCALE)
    assert not mass[3, 1] < torch.inf and bool(mass[4].isfinite().all())
    assert bool(mass[3, [0, 2, 3]].isfinite().all())


def test_a_missing_page_weighs_nan(isa: str) -> None:
    problem = make(LENGTHS, CHUNKS, dim=40)
    for kind in (*KINDS, "bounds"):
        rule, entries = entries_of(problem, kind, 64, 3)
        keys = problem.keys
        table = keys.page_table.clone()
        table[0, 13] = -1  # of the last entry
        where = replace(candidates_of(problem, 64), page_table=table)
        mass = far_mass(problem.q, entries, where, rule, kind, 64, SCALE)
        assert bool(mass[9].isnan().all())


def test_doors() -> None:
    problem = make([200], [1])
    rule, layout = MomentRule("blocks", 64, 0), problem.layout
    keys = problem.keys
    done = moment_blocks(keys.cu_rows, keys.positions, keys.page_table, 64)
    moments = torch.zeros((problem.k.shape[0], 1, 2, 2, 32))
    with pytest.raises(ValueError, match="moments must be float32"):
        key_moments(layout, problem.k, moments[..., :16], done, rule)
    with pytest.raises(ValueError, match="moments must be float32"):
        key_moments(layout, problem.k, moments.double(), done, rule)
    candidates = candidates_of(problem, 64)
    with pytest.raises(ValueError, match="do not fit"):
        far_mass(problem.q[..., :16], moments, candidates, rule, "blocks", 64, 1.0)
    with pytest.raises(ValueError, match="nor what the entries are"):
        far_mass(problem.q, moments, candidates, rule, "diagonal", 64, 1.0)
    with pytest.raises(ValueError, match="unfit for 'bounds'"):
        far_mass(problem.q.bfloat16(), moments, candidates, rule, "bounds", 64, 1.0)
    with pytest.raises(ValueError, match="no shorter than a block of 64"):
        far_mass(problem.q, moments, candidates, rule, "blocks", 63, 1.0)
    with pytest.raises(ValueError, match="one of blocks, diagonal, full"):
        MomentRule("half", 64, 0)
    with pytest.raises(ValueError, match="power of two"):
        MomentRule("full", 48, 0)
