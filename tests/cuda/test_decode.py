"""Split decode: within the error budget of fp64 attention, and the same bits in any order."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from saccade.kernels.attend import ATTEND, AttendCall, BlockLists, cuda
from saccade.kernels.ops import Implementation
from saccade.kernels.store import RowLayout
from saccade.kernels.testing import error

from ..kernels.paged import DTYPES, Problem, check, make, random_lists, same

LENGTHS = [700, 1, 64, 129]
CHUNKS = [2, 1, 1, 3]


@pytest.fixture(autouse=True)
def _only_cuda(on_shim: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attend op has this implementation alone, and it must take every call."""

    def supports(call: AttendCall) -> None:
        assert cuda.supports(call) is None

    chosen = (Implementation("cuda", cuda.attend, supports),)
    monkeypatch.setattr(
        "saccade.kernels.attend.api.ATTEND", replace(ATTEND, implementations=chosen)
    )


def rows(lengths=LENGTHS, chunks=CHUNKS, **options) -> Problem:
    return make(lengths, chunks, layout_of=RowLayout, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [64, 128, 256, 40, 8])
def test_dense(dtype: torch.dtype, dim: int) -> None:
    check(rows(dtype=dtype, dim=dim, v_dim=dim))


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 2), (12, 4), (5, 1), (16, 1), (36, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_groups(heads: int, kv_heads: int, dtype: torch.dtype) -> None:
    check(rows([300, 77], [1, 2], heads=heads, kv_heads=kv_heads, dtype=dtype))


@pytest.mark.parametrize("page", [16, 128])
def test_orders(page: int) -> None:
    """Any order of threads gives the same bits: no result hangs on a race."""
    problem = rows([900, 40], [1, 2], page=page, dim=64, v_dim=24)
    answers = []
    for order in ("0", "1", "7", "8"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SACCADE_SHIM_ORDER", order)
            answers.append(problem.run())
    assert all(same(answers[0], each) for each in answers[1:])
    check(problem)


@pytest.mark.parametrize("window", [1, 63, 64, 65, 500, 5000])
@pytest.mark.parametrize("sinks", [0, 1, 70, 1000])
def test_windows(window: int, sinks: int) -> None:
    check(rows([600, 130], [2, 1]).seeing(window=window, sinks=sinks))


def test_bounds() -> None:
    """lo and hi of every row, one of them empty; a sink logit answers for the empty one."""
    problem = rows([600, 130], [2, 3])
    lo = torch.tensor([0, 100, 5, 129, 40], dtype=torch.int32)
    hi = torch.tensor([10, 599, 120, 129, 41], dtype=torch.int32)
    bounded = problem.seeing(lo=lo, hi=hi)
    out, lse = check(bounded)
    assert not out[3].any() and (lse[3] == -torch.inf).all()
    logits = torch.tensor([0.5, -1.0, 3.0, -torch.inf])
    out, lse = check(bounded.having(sink_logits=logits))
    assert not out[3].any() and error(lse[3], logits) < 1e-6
    check(bounded.seeing(window=50, sinks=20))


@pytest.mark.parametrize("block", [16, 32, 64, 128])
@pytest.mark.parametrize("owners", [2, 4])
def test_lists(block: int, owners: int) -> None:
    """Lists of KV heads and of query heads; some are empty, some name blocks of the future."""
    problem = rows([700, 200], [3, 2], dtype=torch.bfloat16)
    check(problem.seeing(blocks=random_lists(problem, block, owners)))
    windowed = problem.seeing(blocks=random_lists(problem, block, owners), window=300, sinks=32)
    check(windowed)


def test_lists_in_order_of_rows() -> None:
    problem = rows([700, 200], [3, 2])
    listed = random_lists(problem, 64, 2)
    blocks = BlockLists(listed.ids[listed.list_of_row.long()].contiguous(), None, 64)
    assert same(problem.seeing(blocks=blocks).run(), problem.seeing(blocks=listed).run())
    padded = torch.nn.functional.pad(blocks.ids, (0, 70), value=-1)
    check(problem.seeing(blocks=BlockLists(padded, None, 64)))


def test_empty_lists() -> None:
    problem = rows([70], [2])
    for width in (0, 3):
        ids = torch.full((2, 2, width), -1, dtype=torch.int32)
        out, lse = problem.seeing(blocks=BlockLists(ids, None, 64)).run()
        assert not out.any() and (lse == -torch.inf).all()


def test_whole_list_is_dense() -> None:
    problem = rows([700], [2])
    ids = torch.arange(11, dtype=torch.int32).expand(2, 2, 11).contiguous()
    assert same(problem.run(), problem.seeing(blocks=BlockLists(ids, None, 64)).run())


def test_row_does_not_know_its_batch() -> None:
    """Alone, in a batch, under a wider page table: the same bits."""
    problem = rows([2500, 900], [1, 1], dim=64)
    out, lse = problem.run()
    for s in range(2):
        keys = problem.keys
        alone = replace(
            problem,
            q=problem.q[s : s + 1],
            keys=replace(
                keys,
                cu_rows=torch.tensor([0, 1], dtype=torch.int32),
                positions=keys.positions[s : s + 1],
                page_table=keys.page_table[s : s + 1],
            ),
        )
        assert same(alone.run(), (out[s : s + 1], lse[s : s + 1]))
        wide = torch.nn.functional.pad(alone.keys.page_table, (0, 50), value=-1)
        assert same(alone.seeing(page_table=wide).run(), (out[s : s + 1], lse[s : s + 1]))


def test_options() -> None:
    problem = rows([300, 77], [1, 2], dtype=torch.bfloat16)
    check(problem.having(softcap=3.0))
    check(problem.having(out_dtype=torch.float32))
    check(problem.having(scale=0.3, sink_logits=torch.randn(4)))


def test_latent() -> None:
    """Values are the first channels of the keys."""
    problem = rows([300, 77], [1, 2], heads=16, kv_heads=1, dim=576, v_dim=0, dtype=torch.bfloat16)
    problem = replace(problem, dense=[(k, k[..., :512]) for k, _ in problem.dense])
    out, lse = problem.having(value_dim=512).run()
    from ..kernels.paged import oracle

    truth, truth_lse = oracle(problem, exact=True)
    rounded, _ = oracle(problem, exact=False)
    assert error(out, truth) <= 2 * max(error(rounded, truth), 2**-8)
    assert error(lse, truth_lse) < 1e-4


def test_nan_out_of_sight() -> None:
    """What a row does not see cannot reach it; what it sees must."""
    problem = rows([130, 64], [1, 1])
    clean = problem.seeing(window=50).run()
    page = int(problem.keys.page_table[0, 0])
    problem.k[page], problem.v[page] = torch.nan, torch.nan
    assert same(problem.seeing(window=50).run(), clean)
    out, _ = problem.run()
    assert out[0].isnan().all() and not out[1].isnan().any()


def test_missing_pages() -> None:
    """Pages that are evicted, or that no pool has, are not read."""
    problem = rows([300], [1])
    problem.keys.page_table[0, 1] = -1
    hidden = problem.run()
    problem.keys.page_table[0, 1] = 2**30
    assert same(problem.run(), hidden)
    ids = torch.tensor([0, 2, 3, 4], dtype=torch.int32).expand(1, 2, 4).contiguous()
    seen = problem.seeing(blocks=BlockLists(ids, None, 64)).run()
    assert error(hidden[0], seen[0]) < 1e-6 and error(hidden[1], seen[1]) < 1e-6


def test_refusals() -> None:
    """Prefill, values that are no vectors, and a precision that it does not write."""
    problem = rows([300], [1])

    def reason(problem: Problem, dtype: torch.dtype = torch.float32, value_dim=None) -> str:
        return str(cuda.supports(problem.having(out_dtype=dtype, value_dim=value_dim).call()))

    assert reason(problem) == "None"
    assert "prefill" in reason(rows([300], [9]))
    assert "float64" in reason(problem, torch.float64)
    assert "channels" in reason(replace(problem, v=problem.v[..., :0]))
    assert "channels" in reason(replace(problem, v=problem.v[..., :0]), value_dim=12)
    elsewhere = problem.seeing(lo=torch.zeros(1, dtype=torch.int32, device="meta"))
    assert "index tensors" in reason(elsewhere)


def test_no_rows() -> None:
    out, lse = rows([5], [0]).run()
    assert out.shape[0] == lse.shape[0] == 0
