"""Paged attention against fp64, by the error budget: shapes, lengths, dtypes, ragged batches."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from saccade.kernels.attend import api

from .paged import DTYPES, check, cut, make, random_lists, same

LENGTHS = (1, 63, 64, 65, 127, 128, 129, 2047, 2048, 2049, 5000)
DIMS = (
    (32, 32), (40, 40), (48, 80), (64, 64), (80, 48), (96, 96), (128, 128),
    (192, 128), (256, 256), (64, 36), (34, 30), (32, 256), (288, 256),
)  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", LENGTHS)
def test_length(isa, dtype, length):
    """The last rows of a sequence of any length, around page, pass and segment borders."""
    check(make([length], [min(length, 3)], dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("group", [1, 2, 3, 4, 7, 8, 16])
def test_group(isa, dtype, group):
    """Any number of query heads per KV head, at a chunk that fills several tiles."""
    check(make([150], [97], heads=2 * group, kv_heads=2, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("group", [160, 300])
def test_group_larger_than_a_tile(isa, dtype, group):
    """More query heads per KV head than one unit of work holds."""
    check(make([70, 1], [3, 1], heads=group, kv_heads=1, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("dim", "v_dim"), DIMS)
def test_head_dims(isa, dtype, dim, v_dim):
    """Head dims of K and V that differ, that no vector width divides, and the largest ones."""
    check(make([140], [9], dim=dim, v_dim=v_dim, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("dim", "v_dim"), [(33, 31), (1, 1), (7, 65)])
def test_odd_head_dims(isa, dtype, dim, v_dim):
    """Odd head dims (not for bf16, whose K pages hold pairs)."""
    check(make([70], [5], dim=dim, v_dim=v_dim, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("v_dim", [1, 17, 33])
def test_odd_v_dim(isa, dtype, v_dim):
    """V may be of any width for every dtype."""
    check(make([70], [5], dim=32, v_dim=v_dim, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("page", [16, 32, 64, 128, 256])
def test_page_size(isa, dtype, page):
    """Around one page and around two, prefill and decode."""
    lengths = [1, page - 1, page, page + 1, 2 * page, 2 * page + 1]
    check(make(lengths, [1, page - 1, 2, 5, 1, 3], page=page, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ragged_batch(isa, dtype):
    """Prefill chunks, decode rows, and sequences without rows or tokens; fp32 results too."""
    problem = make([300, 0, 2100, 1, 64, 500], [300, 0, 1, 1, 0, 70], dtype=dtype)
    check(problem)
    check(problem.having(out_dtype=torch.float32))


def test_no_rows_at_all(isa):
    """An empty call gives empty results."""
    out, lse = make([5, 0], [0, 0]).run()
    assert out.shape == (0, 4, 32) and lse.shape == (0, 4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strided_q(isa, dtype):
    """q as the model passes it: a slice of the columns of the fused projection."""
    problem = make([200], [33], dtype=dtype)
    fused = torch.full((33, 4 * 32 + 2 * 64 + 3), torch.nan, dtype=dtype)
    fused[:, 3 : 3 + 128] = problem.q.flatten(1)
    whole = problem.run()
    problem.q = fused[:, 3 : 3 + 128].unflatten(1, (4, 32))
    assert not problem.q.is_contiguous()
    assert all(torch.equal(a, b) for a, b in zip(problem.run(), whole, strict=True))
    swapped = problem.q.transpose(0, 1).contiguous().transpose(0, 1)  # heads outermost
    problem.q = swapped
    assert all(torch.equal(a, b) for a, b in zip(problem.run(), whole, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strided_index_tensors(isa, dtype):
    """Index tensors may be slices of larger ones."""
    problem = make([200, 90], [33, 4], dtype=dtype)
    keys = problem.keys
    wide = {
        "cu_rows": keys.cu_rows,
        "positions": keys.positions,
        "lo": torch.arange(37, dtype=torch.int32),
        "hi": keys.positions.int() + 1,
    }
    plain = problem.seeing(**wide)
    strided = {name: torch.stack([x, x * 0 - 5], dim=1)[:, 0] for name, x in wide.items()}
    strided["page_table"] = torch.stack([keys.page_table, keys.page_table * 0], dim=2)[:, :, 0]
    sink = torch.tensor(0.5).expand(4)
    expected = plain.having(sink_logits=sink.contiguous()).run()
    got = problem.seeing(**strided).having(sink_logits=sink).run()
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_logits(isa, dtype):
    """Logits of +-10^4 neither overflow nor lose their order."""
    problem = make([300, 2100], [40, 2], dtype=dtype, size=60.0)
    out, lse = check(problem.having(scale=1.0))
    assert lse.abs().max() > 1e4
    assert out.isfinite().all() and lse.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_huge_logits_select_one_key(isa, dtype):
    """Even finite logits of 10^12 give the value of the best key."""
    problem = make([300], [20], heads=2, dtype=dtype, size=1e6).having(scale=1.0)
    out, lse = problem.run()
    assert lse.abs().max() > 1e11
    for row in range(20):
        k, v = problem.dense[0]
        for head in range(2):
            best = (k[: 281 + row, head].double() @ problem.q[row, head].double()).argmax()
            assert torch.equal(out[row, head], v[best, head])


@pytest.mark.parametrize("softcap", [None, 20.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equal_logits(isa, dtype, softcap):
    """A query of zeros averages V."""
    problem = make([700], [2], dtype=dtype).having(softcap=softcap)
    problem.q = torch.zeros_like(problem.q)
    _, lse = check(problem)
    assert torch.allclose(lse, torch.tensor([699.0, 700.0]).log()[:, None].expand(2, 4))


def test_rows_of_one_call_are_those_of_many(isa):
    """`cut`, which other tests rely on, takes the right rows."""
    problem = make([100, 50], [20, 10])
    out, _ = problem.run()
    assert torch.equal(cut(problem, 1, 3, 7).run()[0], out[23:27])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("dim", "v_dim"), [(32, 32), (64, 48)])
@pytest.mark.parametrize("block", [None, 32])
def test_some_heads_of_pages_that_hold_more(
    isa: str, dtype: torch.dtype, dim: int, v_dim: int, block: int | None
) -> None:
    """Bit by bit what pages of these heads alone give."""
    problem = make([300, 70], [40, 70], dim=dim, v_dim=v_dim, dtype=dtype)
    if block is not None:
        problem = problem.seeing(blocks=random_lists(problem, block, owners=2))
    before, after = torch.full_like(problem.k, torch.nan), torch.full_like(problem.v, torch.nan)
    wide_k = torch.cat([before, problem.k, before[:, :1]], dim=1)
    wide_v = torch.cat([after, problem.v, after[:, :1]], dim=1)
    some = replace(problem, k=wide_k[:, 2:4], v=wide_v[:, 2:4])
    assert api.ATTEND.refusals(some.call())["cpu"] is None
    assert same(some.run(), problem.run())
