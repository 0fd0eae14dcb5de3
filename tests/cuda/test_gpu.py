"""The CUDA kernels on a GPU, where there is one: the same answers as the references on the CPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from saccade.kernels import cuda_native
from saccade.kernels.attend import AttendCall, index_cuda
from saccade.kernels.attend import cuda as attend_by_cuda
from saccade.kernels.attend.block_tiles import TilesCall
from saccade.kernels.attend.gather_index import block_tiles
from saccade.kernels.select import cuda as select_by_cuda
from saccade.kernels.select import reference as select_by_reference
from saccade.kernels.store import RowLayout
from saccade.kernels.summarize import completed_blocks
from saccade.kernels.summarize import cuda as means_by_cuda
from saccade.kernels.testing import within_budget

from ..kernels.paged import DTYPES, make, oracle, random_lists
from .test_index import lists
from .test_pages import fixed_order
from .test_select import problem as selection

USABLE, REASON = cuda_native.state()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not USABLE, reason=REASON)]


def on_gpu(value: Any) -> Any:
    """A copy with every tensor on the GPU; dataclasses and tuples of tensors too."""
    if isinstance(value, torch.Tensor):
        return value.cuda()
    if hasattr(value, "__dataclass_fields__"):
        fields = {name: on_gpu(getattr(value, name)) for name in value.__dataclass_fields__}
        return replace(value, **fields)
    return value


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [64, 128, 256])
@pytest.mark.parametrize("listed", [False, True])
def test_decode(dtype: torch.dtype, dim: int, listed: bool) -> None:
    problem = make([9000, 700, 1], [1, 2, 1], 8, 2, dim, dim, dtype=dtype, layout_of=RowLayout)
    if listed:
        problem = problem.seeing(blocks=random_lists(problem, 64, 2))
    moved = AttendCall(*map(on_gpu, problem.call()))
    assert attend_by_cuda.supports(moved) is None
    out, lse = attend_by_cuda.attend(moved)
    again = attend_by_cuda.attend(moved)
    assert torch.equal(out, again[0]) and torch.equal(lse, again[1])
    truth, truth_lse = oracle(problem, exact=True)
    rounded, rounded_lse = oracle(problem, exact=False)
    within_budget(out.cpu(), rounded, truth)
    within_budget(lse.cpu(), rounded_lse, truth_lse, factor=4.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("length", "chunk"), [(9000, 1), (3000, 500)])
@pytest.mark.parametrize("topk", [8, 200])
def test_select(dtype: torch.dtype, length: int, chunk: int, topk: int) -> None:
    q, means, candidates = selection([length, 700], [chunk, 3], dim=128, dtype=dtype)
    got = select_by_cuda.select_blocks(*map(on_gpu, (q, means, candidates)), topk)
    assert torch.equal(got.cpu(), select_by_reference.select_blocks(q, means, candidates, topk))


@pytest.mark.parametrize("dtype", DTYPES)
def test_means(dtype: torch.dtype) -> None:
    problem = make([640], [640], dim=128, page=64, dtype=dtype, layout_of=RowLayout)
    keys = problem.keys
    done = completed_blocks(keys.cu_rows, keys.positions, keys.page_table, 128, 64)
    means = torch.zeros(problem.k.shape[0], 1, 2, 128, dtype=dtype).cuda()
    means_by_cuda.block_means(problem.layout, problem.k.cuda(), means, on_gpu(done))
    for index, home in enumerate(done.home.tolist()):
        wanted = fixed_order(problem.dense[0][0][index * 128 : index * 128 + 128]).to(dtype)
        assert torch.equal(means.flatten(0, 1)[home].cpu(), wanted)


def test_index() -> None:
    call = TilesCall(*lists([900, 0, 37, 2001], 8, 9, 700), 2, 128)
    got, want = index_cuda.block_tiles(TilesCall(*map(on_gpu, call))), block_tiles(call)
    used = int(want.count.sum())
    assert torch.equal(got.order[:used].cpu(), want.order[:used])
    for name in ("group", "first", "count"):
        assert torch.equal(getattr(got, name).cpu(), getattr(want, name))
