"""Block means, block selection and compressed attention in Triton, interpreted, against their
references. Sorting is slow in the interpreter: few tiles of rows.
"""

from __future__ import annotations

import pytest
import torch

from saccade.kernels.compressed import CompressedCall, ListRule, Spans
from saccade.kernels.compressed import reference as compressed_reference
from saccade.kernels.compressed import triton as compressed_triton
from saccade.kernels.select import Candidates
from saccade.kernels.select import reference as select_reference
from saccade.kernels.select import triton as select_triton
from saccade.kernels.store import RowLayout
from saccade.kernels.summarize import completed_blocks, slots_per_page
from saccade.kernels.summarize import reference as summarize_reference
from saccade.kernels.summarize import triton as summarize_triton
from saccade.kernels.testing import within_budget

from .paged import DTYPES, Problem, make

pytestmark = [
    pytest.mark.usefixtures("interpreted"),
    pytest.mark.filterwarnings("ignore:invalid value", "ignore:Conversion of an array"),
]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
LENGTHS = [500, 70, 5]


def of_rows(chunks=(6, 2, 2), **options) -> Problem:
    return make(LENGTHS, list(chunks), layout_of=RowLayout, **options)


def completed(problem: Problem, block: int, stride: int | None = None):
    """Every block or window of all sequences."""
    cu = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist()], dtype=torch.int32)
    positions = torch.cat([torch.arange(length) for length in LENGTHS])
    page = problem.layout.page_size
    return completed_blocks(cu, positions, problem.keys.page_table, block, page, stride)


def field(problem: Problem, slots: int, width: int) -> torch.Tensor:
    """A page field of NaN."""
    shape = (problem.k.shape[0], slots, problem.k.shape[1], width)
    return torch.full(shape, torch.nan, dtype=problem.k.dtype)


def close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """The same elements are written, and equal but for the last bit."""
    limit = torch.finfo(wanted.dtype).eps * wanted.nan_to_num().abs() + 1e-6
    near = (found.double() - wanted.double()).abs() <= limit
    return bool((near | (found.isnan() & wanted.isnan())).all())


def candidates_of(problem: Problem, block: int) -> Candidates:
    keys = problem.keys
    size = problem.layout.page_size
    return Candidates(keys.cu_rows, keys.positions, keys.page_table, block, size)


@every_dtype
@pytest.mark.parametrize(("block", "page"), [(16, 64), (64, 64), (128, 64), (64, 16)])
def test_block_means(dtype, block, page):
    problem = of_rows(dtype=dtype, page=page, dim=40)
    means = field(problem, slots_per_page(block, page), 40)
    wanted, done = means.clone(), completed(problem, block)
    assert summarize_triton.supports(problem.layout, problem.k, means, done) is None
    summarize_triton.block_means(problem.layout, problem.k, means, done)
    summarize_reference.block_means(problem.layout, problem.k, wanted, done)
    assert close(means, wanted)
    assert not wanted.isnan().all()


@pytest.mark.parametrize(("length", "stride"), [(32, 16), (8, 8), (96, 32), (128, 128)])
def test_window_means(length, stride):
    """Windows that begin anywhere, of some heads of the pages, keys and values."""
    problem = of_rows(dtype=torch.float16, kv_heads=4, v_dim=24)
    k, v = problem.k[:, 1:3], problem.v[:, 1:3]
    shape = (k.shape[0], slots_per_page(stride, 64, least=1), 2, 32 + 24)
    means = torch.full(shape, torch.nan, dtype=k.dtype)
    wanted, done = means.clone(), completed(problem, length, stride)
    assert summarize_triton.supports_windows(problem.layout, k, v, means, done) is None
    summarize_triton.window_means(problem.layout, k, v, means, done)
    summarize_reference.window_means(problem.layout, k, v, wanted, done)
    assert close(means, wanted)
    assert not wanted.isnan().all()


def means_of(problem: Problem, block: int) -> torch.Tensor:
    means = field(problem, slots_per_page(block, problem.layout.page_size), problem.q.shape[2])
    done = completed(problem, block)
    summarize_reference.block_means(problem.layout, problem.k, means, done)
    return means


@pytest.mark.parametrize(
    ("dtype", "block", "page", "topk"),
    [
        (torch.float32, 16, 64, 3),
        (torch.float16, 64, 64, 5),
        (torch.bfloat16, 128, 64, 1),
        (torch.float16, 64, 16, 0),
    ],
    ids=str,
)
def test_selection(dtype, block, page, topk):
    """Scores of random numbers are not near each other: the same lists."""
    problem = of_rows(dtype=dtype, page=page, heads=6, dim=48)
    means, candidates = means_of(problem, block), candidates_of(problem, block)
    assert select_triton.supports(problem.q, means, candidates, topk) is None
    found = select_triton.select_blocks(problem.q, means, candidates, topk)
    assert torch.equal(found, select_reference.select_blocks(problem.q, means, candidates, topk))


def test_ties_go_to_the_later_block_and_nan_is_never_chosen():
    """Also zeros of either sign, infinities and a page that is gone."""
    problem = of_rows(heads=2, kv_heads=1, dim=16)
    means, candidates = means_of(problem, 16), candidates_of(problem, 16)
    pages = problem.keys.page_table[0].long()
    problem.q[:], means[:] = 1.0, 0.5
    means[pages[1]] = -0.0
    means[pages[1], 2] = 0.0
    means[pages[2], 1:3] = torch.nan
    means[pages[3], 1] = torch.inf
    means[pages[3], 2] = -torch.inf
    problem.keys.page_table[0, 4] = -1
    for topk in (2, 6):
        found = select_triton.select_blocks(problem.q, means, candidates, topk)
        wanted = select_reference.select_blocks(problem.q, means, candidates, topk)
        assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    ("dtype", "spans", "rule"),
    [
        (torch.float32, Spans(32, 16), ListRule(6, 1, 2)),
        (torch.float16, Spans(32, 16, "max"), ListRule(3, 0, 1, 3)),
        (torch.bfloat16, Spans(64, 64), ListRule(5, 0, 2)),
        (torch.float16, Spans(128, 32), ListRule(2)),
        (torch.float16, Spans(64, 8), None),
    ],
    ids=str,
)
def test_compressed(dtype, spans, rule):
    """Outputs by the error budget, lists exactly; three heads to an owner."""
    problem = of_rows(dtype=dtype, heads=6, dim=48)
    entries = field(problem, spans.slots(64), 48 + 32)
    done = completed(problem, spans.length, spans.stride)
    summarize_reference.window_means(problem.layout, problem.k, problem.v, entries, done)
    settings = (candidates_of(problem, 64), rule, 48**-0.5, 32, spans, 48)
    call = CompressedCall(problem.q, entries, *settings)
    assert compressed_triton.supports(call) is None
    out, lse, ids = compressed_triton.compressed(call)
    same_precision = compressed_reference.compressed(call)
    exact = call._replace(q=problem.q.double(), entries=entries.double())
    truth = compressed_reference.compressed(exact)
    # Probabilities are rounded to the dtype before they weigh the values.
    within_budget(out, same_precision[0], truth[0], 4.0)
    within_budget(lse, same_precision[1], truth[1], 4.0)
    assert torch.equal(ids, same_precision[2])


def test_latents_choose_only():
    """Keys of 160 channels in two parts, no values: an answer of width 0, and lists."""
    problem = of_rows(dtype=torch.float16, heads=4, kv_heads=1, dim=160)
    entries = field(problem, 1, 160)
    done = completed(problem, 64)
    summarize_reference.block_means(problem.layout, problem.k, entries, done)
    settings = (candidates_of(problem, 64), ListRule(3), 0.1, 0, Spans(64, 64), 0)
    call = CompressedCall(problem.q, entries, *settings)
    out, lse, ids = compressed_triton.compressed(call)
    wanted = compressed_reference.compressed(call)
    assert out.shape[2] == 0
    assert torch.allclose(lse, wanted[1], atol=1e-5)
    assert torch.equal(ids, wanted[2])


def test_what_is_left_to_others():
    problem = of_rows()
    means, candidates = means_of(problem, 16), candidates_of(problem, 16)
    assert "more than" in select_triton.supports(problem.q, means, candidates, 200)
    settings = (candidates, ListRule(200), 1.0, 8, Spans(16, 16), 0)
    assert "more than" in compressed_triton.supports(CompressedCall(problem.q, means, *settings))
