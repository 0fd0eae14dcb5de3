"""The Triton attention kernel, interpreted, against the definition. Few programs, small shapes: the
interpreter takes some 10 ms for every tile of keys.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from saccade.kernels.attend import ATTEND, BlockLists, api, triton
from saccade.kernels.attend.tiles import boxes_pay, decode_tile, parts_of, prefill_tile
from saccade.kernels.store import PageLayout, RowLayout

from .paged import DTYPES, Problem, cut, make, oracle, same
from .paged import check as checked

pytestmark = [
    pytest.mark.usefixtures("interpreted"),
    pytest.mark.filterwarnings(
        "ignore:invalid value", "ignore:divide by zero", "ignore:Conversion of an array"
    ),
]


@pytest.fixture(autouse=True)
def _this_kernel_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Selected blocks have another kernel too."""
    own = [each for each in ATTEND.implementations if each.name == "triton"]
    monkeypatch.setattr(api, "ATTEND", replace(ATTEND, implementations=own))


every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def of_rows(lengths, chunks, **options) -> Problem:
    return make(lengths, chunks, layout_of=RowLayout, **options)


def refusal(problem: Problem) -> str | None:
    """Why the kernel would not serve the problem."""
    return ATTEND.refusals(problem.call())["triton"]


def check(problem: Problem, factor: float = 2.5) -> None:
    """Compares the kernel with the definition. The reference rounds the probabilities themselves,
    the kernel their multiples relative to the maximum so far: other roundings, as many."""
    assert refusal(problem) is None
    checked(problem, factor)


def lists_of(problem: Problem, block: int, owners: int, columns: int, shared: bool) -> BlockLists:
    """Random ascending lists, some short, one empty, one with blocks in the future."""
    rows, last = problem.q.shape[0], max(k.shape[0] for k, _ in problem.dense) // block
    ids = torch.rand((rows, owners, last + 2)).argsort(-1)[..., :columns].sort(-1).values.int()
    for row in range(rows):
        ids[row, :, columns - row % columns :] = -1
    ids[-1, 0] = -1
    order = torch.randperm(rows)
    return BlockLists(ids[order], order.argsort().int() if shared else None, block)


@every_dtype
@pytest.mark.parametrize("page", [16, 64])
def test_chunks_and_decode_rows(dtype, page):
    """Ragged prompts and single rows in one call; NaN lies in unused pages."""
    check(of_rows([75, 40, 1], [20, 1, 1], dtype=dtype, page=page))


@every_dtype
@pytest.mark.parametrize(("heads", "kv_heads"), [(3, 1), (2, 2), (8, 1)])
def test_groups(dtype, heads, kv_heads):
    """Groups that are no power of two, that are one head, and large ones."""
    check(of_rows([70, 20], [9, 1], heads=heads, kv_heads=kv_heads, dtype=dtype))


@every_dtype
@pytest.mark.parametrize(("dim", "v_dim"), [(40, 24), (96, 16), (16, 80)])
def test_dims(dtype, dim, v_dim):
    """Values narrower and wider than keys, and neither a power of two."""
    check(of_rows([70, 20], [9, 1], heads=2, kv_heads=1, dim=dim, v_dim=v_dim, dtype=dtype))


@every_dtype
@pytest.mark.parametrize(("dim", "value_dim"), [(48, 32), (40, 24)])
def test_latents(dtype, dim, value_dim):
    """Values that are the first channels of the keys."""
    problem = of_rows([70, 20], [9, 1], kv_heads=1, dim=dim, v_dim=0, dtype=dtype)
    values = [(k, k[..., :value_dim]) for k, _ in problem.dense]
    problem = replace(problem, dense=values)
    out, lse = problem.having(value_dim=value_dim).run()
    assert refusal(problem.having(value_dim=value_dim)) is None
    truth, truth_lse = oracle(problem, exact=True)
    tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(out.double(), truth, atol=tolerance, rtol=0)
    torch.testing.assert_close(lse.double(), truth_lse, atol=1e-5, rtol=0)


@every_dtype
@pytest.mark.parametrize(("window", "sinks"), [(1, 0), (40, 3), (17, 70), (500, 0), (2**40, 1)])
def test_windows(dtype, window, sinks):
    """Windows with sinks: with a gap, without one, and wider than the sequence."""
    problem = of_rows([230, 90], [20, 1], heads=2, kv_heads=1, dtype=dtype)
    check(problem.seeing(window=window, sinks=sinks))


@every_dtype
def test_row_bounds(dtype):
    """Every row has a range of its own: empty, reversed, beyond its position and the table."""
    problem = of_rows([230, 90], [20, 1], heads=2, kv_heads=1, dtype=dtype)
    lo, hi = torch.randint(-20, 150, (21,)).int(), torch.randint(100, 230, (21,)).int()
    lo[3], hi[3], lo[4], hi[4], lo[20], hi[20] = 150, 20, 60, 60, 5, 90
    check(problem.seeing(lo=lo, hi=hi))
    check(problem.seeing(hi=hi))
    out, lse = problem.seeing(lo=lo, hi=hi).run()
    assert not out[3:5].any() and (lse[3:5] == -torch.inf).all()


@every_dtype
def test_soft_cap_and_sink_logits(dtype):
    """Capped scores, an extra logit per head, also for rows that see no key."""
    problem = of_rows([100, 30], [12, 1], dtype=dtype, size=3.0)
    sinks = torch.tensor([0.5, -torch.inf, 30.0, -30.0])
    check(problem.having(softcap=30.0, sink_logits=sinks), factor=3.0)
    empty = problem.seeing(hi=torch.zeros(13, dtype=torch.int32)).having(sink_logits=sinks)
    out, lse = empty.run()
    assert not out.any() and torch.allclose(lse, sinks.expand(13, 4))


@every_dtype
@pytest.mark.parametrize(("owners", "shared"), [(2, False), (4, True)])
def test_block_lists(dtype, owners, shared):
    """Lists per KV head and per head, of a row's own number or by `list_of_row`."""
    problem = of_rows([150, 100], [2, 1], dtype=dtype)
    check(problem.seeing(blocks=lists_of(problem, 32, owners, 3, shared)))
    check(problem.seeing(blocks=lists_of(problem, 128, owners, 1, shared), window=90, sinks=9))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("block", "page"), [(4, 16), (8, 64)])
def test_lists_of_short_blocks(dtype, block, page):
    """Several to a tile of keys, from any pages: of single rows in parts, too, whose bits depend
    on no other row.
    """
    problem = of_rows([150, 830], [3, 1], heads=4, kv_heads=2, dtype=dtype, page=page)
    lists = lists_of(problem, block, 2, 13, True)
    check(problem.seeing(blocks=lists))
    check(problem.seeing(blocks=lists, window=90, sinks=9))
    check(problem.seeing(blocks=lists_of(problem, block, 2, 640 // block, False)), factor=4.0)
    ids, some = lists.ids[lists.list_of_row.long()][3:], problem.keys
    alone = replace(problem, q=problem.q[3:]).seeing(
        cu_rows=torch.tensor([0, 1], dtype=torch.int32),
        positions=some.positions[3:],
        page_table=some.page_table[1:],
        blocks=BlockLists(ids, None, block),
    )
    together = problem.seeing(blocks=lists).run()
    assert all(torch.equal(a, b[3:]) for a, b in zip(alone.run(), together, strict=True))


@pytest.mark.parametrize("page", [16, 64])
def test_blocks_that_reach_beyond_the_table(page):
    """The last block of a list may be far longer than the page table; nothing is read there."""
    problem = of_rows([70, 40], [2, 1], heads=2, kv_heads=1, page=page)
    table = problem.keys.page_table[:, : -(-70 // page)]
    ids = torch.tensor([0, -1], dtype=torch.int32).expand(3, 1, -1)
    whole = problem.seeing(blocks=BlockLists(ids, None, 4096), page_table=table.contiguous())
    check(whole)
    ids = torch.tensor([0, 1], dtype=torch.int32).expand(3, 1, -1)
    check(whole.seeing(blocks=BlockLists(ids, None, 64)))


def test_lists_that_hold_nothing():
    problem = of_rows([100, 30], [2, 1], heads=2, kv_heads=1)
    for block in (16, 4):
        for ids in ([-1, -1], [], [112 // block, 144 // block], [2**31 - 1, -1], [2**30] * 2):
            lists = torch.tensor(ids, dtype=torch.int32).expand(3, 1, -1)
            out, lse = problem.seeing(blocks=BlockLists(lists, None, block)).run()
            assert not out.any() and (lse == -torch.inf).all()


@every_dtype
def test_split_keys(dtype):
    """Single rows over several parts of their keys, with windows, lists and a sink logit."""
    problem = of_rows([2100, 60], [1, 1], heads=2, kv_heads=1, dtype=dtype)
    check(problem, factor=3.0)  # a mean over so many keys is small, each part has its own maximum
    check(problem.seeing(window=1300, sinks=9).having(sink_logits=torch.tensor([0.5, 3.0])))
    # 64 numbers alone: a small sample of the reference's errors.
    check(problem.seeing(blocks=lists_of(problem, 128, 1, 9, False)), factor=4.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_row_does_not_depend_on_the_batch(dtype):
    """A sequence alone gives the bits that it gives among others, under every mask."""
    problem = of_rows([200, 1100, 90], [40, 1, 1], heads=2, kv_heads=1, dtype=dtype)
    lists = lists_of(problem, 128, 1, 5, True)
    for each in (problem, problem.seeing(window=50, sinks=3), problem.seeing(blocks=lists)):
        out, lse = each.run()
        for s, (begin, end) in enumerate(each.bounds()):
            alone = cut(each, s, 0, end - begin)
            assert same(alone.run(), (out[begin:end], lse[begin:end]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_rows_of_a_tile_do_not_meet(dtype):
    """Some rows of a chunk, in another order, give what they give in the whole chunk."""
    problem = of_rows([200], [40], heads=2, kv_heads=1, dtype=dtype).seeing(window=90, sinks=2)
    out, lse = problem.run()
    some = torch.randperm(40)[:17]
    mixed = replace(problem, q=problem.q[some]).seeing(
        positions=problem.keys.positions[some], cu_rows=torch.tensor([0, 17], dtype=torch.int32)
    )
    assert same(mixed.run(), (out[some], lse[some]))


@pytest.mark.parametrize(
    ("wrong", "dtype"),
    [(10**6, torch.float32), (-1, torch.float16), (2**31 - 1, torch.float16)],
    ids=str,
)
def test_absent_pages(wrong, dtype):
    """Page ids outside the pool name no page: nobody reads there, in masked and unmasked tiles, by
    addresses (fp32) and by bulk copies."""
    problem = of_rows([200, 200], [20, 1], heads=2, kv_heads=1, dtype=dtype)
    table = problem.keys.page_table.clone()
    table[:, 1] = wrong
    ids = torch.tensor([0, 2, 3], dtype=torch.int32).expand(1, 1, -1)
    lists = BlockLists(ids, torch.zeros(21, dtype=torch.int32), 64)
    got, want = problem.seeing(page_table=table).run(), problem.seeing(blocks=lists).run()
    assert torch.allclose(got[0], want[0], atol=2 * torch.finfo(dtype).eps) and torch.allclose(
        got[1], want[1], rtol=1e-5
    )


@every_dtype
def test_some_heads_of_pages_and_wide_output(dtype):
    """Pages may hold more heads than these, queries more channels; the output may be fp32."""
    problem = of_rows([70, 20], [9, 1], heads=2, kv_heads=4 // 2, dtype=dtype)
    one = replace(
        problem,
        q=torch.cat([problem.q, problem.q], -1)[:, :1, :32],
        k=problem.k[:, 1:],
        v=problem.v[:, 1:],
        dense=[(k[:, 1:], v[:, 1:]) for k, v in problem.dense],
    )
    check(one)
    out, _ = one.having(out_dtype=torch.float32).run()
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.to(dtype), one.run()[0])


def test_no_rows_and_refusals(monkeypatch):
    problem = of_rows([70], [9], heads=2, kv_heads=1)
    none = replace(problem, q=problem.q[:0]).seeing(
        positions=problem.keys.positions[:0], cu_rows=torch.zeros(2, dtype=torch.int32)
    )
    assert none.run()[0].shape == (0, 2, 32)
    panels = make([70], [9], heads=2, kv_heads=1)
    assert isinstance(panels.layout, PageLayout) and "CPU's layout" in str(refusal(panels))
    assert "output" in str(refusal(problem.having(out_dtype=torch.float64)))
    monkeypatch.delenv("SACCADE_CUDA_INTERPRET")
    assert refusal(problem) == "tensor on cpu"


def test_bulk_copies(monkeypatch):
    """Tiles of prompts come so where boxes fit; the answer is that of loads by addresses."""
    problem = of_rows([200], [70], heads=2, kv_heads=1, dtype=torch.float16)
    taken = []
    boxes = triton._Launcher._boxes
    monkeypatch.setattr(
        triton._Launcher, "_boxes", lambda *args: (taken.append(boxes(*args)), taken[-1])[1]
    )
    by_boxes = problem.run()
    assert taken[-1] is not None and taken[-1][0].block_shape == [64, 32]
    monkeypatch.setenv("SACCADE_TRITON_TMA", "0")
    assert same(problem.run(), by_boxes) and taken[-1] is None
    monkeypatch.delenv("SACCADE_TRITON_TMA")
    assert not boxes_pay((8, 0), 2, (128, 128), 64) and not boxes_pay((9, 0), 4, (128, 128), 64)
    assert not boxes_pay((9, 0), 2, (96, 96), 64) and boxes_pay((10, 0), 2, (64, 128), 16)


def test_tiles():
    """The pure functions: latents are two powers of two, groups fill a tile."""
    assert [parts_of(dim) for dim in (64, 576, 96, 80, 192, 40, 24, 8, 120)] == [
        (64, 0), (512, 64), (64, 32), (64, 16), (128, 64), (32, 16), (32, 0), (16, 0), (128, 0)
    ]  # fmt: skip
    for group in (1, 3, 4, 8, 16, 128):
        for dim, itemsize in ((64, 2), (128, 2), (256, 2), (576, 2), (128, 4)):
            for page in (16, 64, 256):
                tiles = [decode_tile(group, dim, min(dim, 512), itemsize, page, 0)]
                for capability in ((8, 0), (9, 0), (10, 0)):
                    tiles.append(prefill_tile(group, dim, dim, itemsize, page, capability))
                for tile in tiles:
                    assert 16 <= tile.keys <= page and tile.rows >= 16
                    assert tile.heads <= tile.slots and tile.rows % tile.slots == 0
