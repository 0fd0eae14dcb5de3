"""Page writes and summaries: exact, in any order of threads."""

from __future__ import annotations

import pytest
import torch

from saccade.kernels.store import PageLayout, RowLayout, WriteCall, cuda, reference
from saccade.kernels.summarize import completed_blocks
from saccade.kernels.summarize import cuda as means_by_cuda
from saccade.kernels.summarize import reference as means_by_reference
from saccade.kernels.testing import within_budget

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
pytestmark = pytest.mark.usefixtures("on_shim", "order")


def pages(page: int, heads: int, dim: int, v_dim: int, dtype: torch.dtype, count: int = 6):
    layout = RowLayout(page)
    k, v = layout.allocate(count, heads, dim, v_dim, dtype)
    return layout, k.fill_(torch.nan), v.fill_(torch.nan)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("page", "dim", "v_dim"), [(16, 64, 64), (64, 128, 72), (256, 8, 8), (32, 576, 0)]
)
@pytest.mark.parametrize("clear", [True, False])
def test_write(page: int, dim: int, v_dim: int, dtype: torch.dtype, clear: bool) -> None:
    """A page from its middle, a whole page, one that is only begun, a row of nowhere."""
    layout, k_pages, v_pages = pages(page, 2, dim, v_dim, dtype)
    wanted = k_pages.clone(), v_pages.clone()
    first = [3 * page + page // 2 + i for i in range(page - page // 2)]
    slots = torch.tensor([*first, *range(page), -1, 5 * page, 5 * page + 1])
    k = torch.randn(slots.numel(), 2, dim).to(dtype)
    v = torch.randn(slots.numel(), 3, v_dim).to(dtype)[:, :2]
    call = WriteCall(layout, k_pages, v_pages, k, v, slots, clear)
    assert cuda.supports(call) is None
    cuda.write_pages(call)
    reference.write_pages(WriteCall(layout, *wanted, k, v, slots, clear))
    for got, want in zip((k_pages, v_pages), wanted, strict=True):
        assert torch.equal(got.isnan(), want.isnan())
        assert torch.equal(got.nan_to_num(), want.nan_to_num())
    assert v_dim == 0 or clear != bool(v_pages[5, :, 2:].isnan().all())


def test_no_rows() -> None:
    layout, k_pages, v_pages = pages(16, 1, 8, 8, torch.float32)
    empty = torch.zeros(0, 1, 8)
    slots = torch.zeros(0, dtype=torch.int64)
    cuda.write_pages(WriteCall(layout, k_pages, v_pages, empty, empty, slots))
    assert k_pages.isnan().all()


def test_hostile_slots() -> None:
    """Slots behind the last page write nowhere."""
    layout, k_pages, v_pages = pages(16, 1, 8, 8, torch.float32, count=2)
    row = torch.ones(2, 1, 8)
    slots = torch.tensor([32, 2**40])
    cuda.write_pages(WriteCall(layout, k_pages, v_pages, row, row, slots))
    assert k_pages.isnan().all() and v_pages.isnan().all()


def test_refusals() -> None:
    layout, k_pages, v_pages = pages(16, 1, 8, 8, torch.float32)
    row, slots = torch.ones(1, 1, 8), torch.tensor([0])
    call = WriteCall(layout, k_pages, v_pages, row, row, slots)
    crooked = torch.ones(1, 1, 9)[..., 1:]
    assert "16 bytes" in str(cuda.supports(call._replace(k=crooked)))
    assert "layout" in str(cuda.supports(call._replace(layout=PageLayout(16))))
    strided = torch.zeros(4, dtype=torch.int64)[::2]
    assert "index" in str(cuda.supports(call._replace(slots=strided)))
    assert "meta" in str(cuda.supports(call._replace(slots=slots.to("meta"))))
    sliced = torch.zeros(6, 16, 2, 8).transpose(1, 2)
    assert "heads of a page" in str(cuda.supports(call._replace(k_pages=sliced)))


def fixed_order(keys: torch.Tensor) -> torch.Tensor:
    """float32 mean of keys [n, ...]: token t in stripe t % 8, the stripes in order."""
    stripes = []
    for stripe in range(8):
        total = torch.zeros_like(keys[0], dtype=torch.float32)
        for key in keys[stripe::8].float():
            total = total + key
        stripes.append(total)
    total = stripes[0]
    for stripe in stripes[1:]:
        total = total + stripe
    return total / keys.shape[0]


def filled(page: int, dim: int, dtype: torch.dtype, tokens: int):
    """Pages in shuffled order that hold `tokens` keys, and the keys."""
    count = -(-tokens // page)
    layout, k_pages, v_pages = pages(page, 2, dim, 24, dtype, count + 2)
    table = torch.randperm(count + 2)[None, :count].int()
    k, v = torch.randn(tokens, 2, dim).to(dtype), torch.randn(tokens, 2, 24).to(dtype)
    where = torch.arange(tokens)
    slots = table[0].long()[where // page] * page + where % page
    reference.write_pages(WriteCall(layout, k_pages, v_pages, k, v, slots))
    return layout, k_pages, v_pages, table, k, v


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("block", "page", "dim"), [(16, 64, 64), (64, 64, 128), (128, 32, 136), (512, 256, 8)]
)
def test_block_means(block: int, page: int, dim: int, dtype: torch.dtype) -> None:
    """Bit for bit the sum in the fixed order, and near the reference."""
    tokens = 2 * block + block // 2
    layout, k_pages, _, table, k, _ = filled(page, dim, dtype, tokens)
    done = completed_blocks(
        torch.tensor([0, tokens], dtype=torch.int32), torch.arange(tokens), table, block, page
    )
    shape = (k_pages.shape[0], max(1, page // block), 2, dim)
    means = torch.full(shape, torch.nan, dtype=dtype)
    assert means_by_cuda.supports(layout, k_pages, means, done) is None
    wanted = means.clone()
    means_by_cuda.block_means(layout, k_pages, means, done)
    means_by_reference.block_means(layout, k_pages, wanted, done)
    assert torch.equal(means.isnan(), wanted.isnan())
    found = means.flatten(0, 1)[done.home]
    for index, mean in enumerate(found):
        keys = k[index * block : (index + 1) * block]
        assert torch.equal(mean, fixed_order(keys).to(dtype))
    keys = k[: found.shape[0] * block].unflatten(0, (-1, block))
    within_budget(found, keys.float().mean(1).to(dtype), keys.double().mean(1), factor=4.0)


@pytest.mark.parametrize("values", [True, False])
def test_window_means(values: bool) -> None:
    """Overlapping windows that begin inside pages; values behind the keys."""
    layout, k_pages, v_pages, table, k, v = filled(64, 40, torch.bfloat16, 150)
    done = completed_blocks(
        torch.tensor([0, 150], dtype=torch.int32), torch.arange(150), table, 32, 64, 16
    )
    width = 64 if values else 40
    means = torch.full((k_pages.shape[0], 4, 2, width), torch.nan, dtype=torch.bfloat16)
    arguments = (layout, k_pages, v_pages, means, done)
    assert means_by_cuda.supports_windows(*arguments) is None
    means_by_cuda.window_means(*arguments)
    both = torch.cat([k, v], -1)[..., :width]
    for index, home in enumerate(done.home.tolist()):
        wanted = fixed_order(both[index * 16 : index * 16 + 32]).to(torch.bfloat16)
        assert torch.equal(means.flatten(0, 1)[home], wanted)


def test_means_of_some_heads() -> None:
    """Pages may hold more heads than those that are asked for."""
    layout, k_pages, _, table, k, _ = filled(64, 16, torch.float32, 64)
    done = completed_blocks(
        torch.tensor([0, 64], dtype=torch.int32), torch.arange(64), table, 64, 64
    )
    means = torch.full((k_pages.shape[0], 1, 1, 16), torch.nan)
    means_by_cuda.block_means(layout, k_pages[:, 1:], means, done)
    assert torch.equal(means.flatten(0, 1)[done.home[0], 0], fixed_order(k[:, 1]))
