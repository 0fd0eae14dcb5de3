"""The Triton kernel of latents, interpreted, against the definition: rows whose values are channels
of their keys. Few programs: the interpreter takes some 10 ms for every tile of keys.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from saccade.kernels import cuda_native, gpu
from saccade.kernels.attend import (
    ATTEND,
    BlockLists,
    api,
    cuda,
    gpu_scratch_bytes,
    latent,
    triton,
)
from saccade.kernels.attend import latent_rules as rules
from saccade.kernels.store import RowLayout
from saccade.kernels.testing import within_budget

from .paged import DTYPES, Problem, cut, make, oracle, same

pytestmark = [
    pytest.mark.usefixtures("interpreted"),
    pytest.mark.filterwarnings(
        "ignore:invalid value", "ignore:divide by zero", "ignore:Conversion of an array"
    ),
]

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture(autouse=True)
def launched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The splits of every launch of this kernel; single rows must reach it, and no other one."""
    found: list[int] = []
    own = [each for each in ATTEND.implementations if each.name == "triton"]
    monkeypatch.setattr(api, "ATTEND", replace(ATTEND, implementations=own))
    run, general = latent.run, triton._Launcher.run

    def counted(call, out, lse, rows_between, splits, by_row):
        found.append(splits)
        run(call, out, lse, rows_between, splits, by_row)

    def tiles(launcher, tile, out, lse, rows_between, *rest):
        assert launcher._call.keys.blocks is None and rows_between[0] != 1 and not rest
        general(launcher, tile, out, lse, rows_between, *rest)

    monkeypatch.setattr(latent, "run", counted)
    monkeypatch.setattr(triton._Launcher, "run", tiles)
    return found


def latents(lengths, chunks, heads=5, groups=1, dim=48, value_dim=32, **options) -> Problem:
    """Random latents of so many groups; `dense` holds keys and the values in them."""
    problem = make(lengths, chunks, heads, groups, dim=dim, v_dim=0, layout_of=RowLayout, **options)
    return replace(problem, dense=[(k, k[..., :value_dim]) for k, _ in problem.dense])


def answer(problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    """What the op answers."""
    return problem.having(value_dim=problem.dense[0][1].shape[2]).run()


def check(problem: Problem, factor: float = 4.0) -> tuple[torch.Tensor, torch.Tensor]:
    """The answer, after a comparison with the definition by the error budget. The interpreter cuts
    off the bits that bf16 has not, where a GPU rounds: half as much again for every rounding."""
    if problem.q.dtype == torch.bfloat16:
        factor *= 2.0
    out, lse = answer(problem)
    truth, truth_lse = oracle(problem, exact=True)
    rounded, rounded_lse = oracle(problem, exact=False)
    within_budget(out, rounded, truth, factor)
    within_budget(lse, rounded_lse, truth_lse, factor=5.0)  # of few numbers
    return out, lse


def lists_of(problem: Problem, block: int, columns: int, shared: bool = False) -> BlockLists:
    """Random ascending lists of every group, some short, one empty, one with future blocks."""
    rows, owners = problem.q.shape[0], problem.k.shape[1]
    last = max(k.shape[0] for k, _ in problem.dense) // block
    ids = torch.rand((rows, owners, last + 2)).argsort(-1)[..., :columns].sort(-1).values.int()
    for row in range(rows):
        ids[row, :, columns - row % columns :] = -1
    ids[-1, 0] = -1
    order = torch.randperm(rows)
    return BlockLists(ids[order], order.argsort().int() if shared else None, block)


@every_dtype
@pytest.mark.parametrize(("heads", "groups"), [(1, 1), (5, 1), (40, 2), (80, 1)])
def test_groups(dtype, heads, groups, launched):
    """Groups of one program and of two, none of them a full tile; NaN lies in unused pages."""
    check(latents([100, 7], [1, 1], heads, groups, dtype=dtype))
    assert launched == [1 + -(-3 * 64 // (256 if heads < 40 else 512))]


@every_dtype
@pytest.mark.parametrize(("dim", "value_dim"), [(576, 512), (40, 24), (64, 64), (64, 48), (96, 64)])
def test_channels(dtype, dim, value_dim):
    """Two powers of two and one, and values of fewer channels than the first of them."""
    check(latents([70], [1], 3, dim=dim, value_dim=value_dim, dtype=dtype))


@every_dtype
@pytest.mark.parametrize("page", [16, 32, 256])
def test_pages(dtype, page):
    """Tiles over several pages, and several tiles of a page."""
    check(latents([150, 1], [1, 1], 4, page=page, dtype=dtype))


@every_dtype
def test_splits(dtype, launched, monkeypatch):
    """Splits of the least length, and then longer ones: no row has more than `most_splits`."""
    problem = latents([900, 300, 40], [1, 1, 1], 3, dtype=dtype)
    check(problem)
    assert launched.pop() == 5  # of 256 keys each
    monkeypatch.setattr(rules, "most_splits", lambda kv_heads, parts: 2)
    check(problem)
    assert launched.pop() == 2


@every_dtype
@pytest.mark.parametrize(("window", "sinks"), [(1, 0), (300, 3), (17, 70), (2**40, 1)])
def test_windows(dtype, window, sinks):
    """Windows with sinks: with a gap, without one, and wider than the sequence."""
    problem = latents([700, 90], [1, 1], 4, dtype=dtype)
    check(problem.seeing(window=window, sinks=sinks))


@every_dtype
def test_row_bounds(dtype):
    """Every row has a range of its own: empty, reversed, beyond its position and the table."""
    problem = latents([230, 90, 60, 300], [1, 1, 1, 1], 4, dtype=dtype)
    lo = torch.tensor([-20, 60, 50, 250], dtype=torch.int32)
    hi = torch.tensor([120, 60, 20, 300], dtype=torch.int32)
    out, lse = check(problem.seeing(lo=lo, hi=hi))
    assert not out[1:3].any() and (lse[1:3] == -torch.inf).all()
    check(problem.seeing(hi=hi))


@every_dtype
def test_soft_cap_and_sink_logits(dtype):
    """Capped scores, an extra logit per head, also for rows that see no key."""
    problem = latents([100, 30], [1, 1], 4, dtype=dtype, size=3.0)
    sinks = torch.tensor([0.5, -torch.inf, 30.0, -30.0])
    check(problem.having(softcap=30.0, sink_logits=sinks))
    empty = problem.seeing(hi=torch.zeros(2, dtype=torch.int32)).having(sink_logits=sinks)
    out, lse = answer(empty)
    assert not out.any() and torch.allclose(lse, sinks.expand(2, 4))


@every_dtype
@pytest.mark.parametrize("block", [4, 16, 32, 128])
def test_block_lists(dtype, block, launched):
    """Lists of every group, for the rows of prompts too: tiles over several blocks, and several
    tiles of a block."""
    problem = latents([250, 100], [2, 1], 6, 2, dtype=dtype)
    check(problem.seeing(blocks=lists_of(problem, block, 3)))
    narrow = problem.seeing(blocks=lists_of(problem, block, 2, shared=True), window=90, sinks=9)
    check(narrow)
    assert launched == [0, 0]


@every_dtype
def test_long_lists(dtype, launched):
    """The lists of single rows are split, those of the others are not."""
    problem = latents([1400, 900], [2, 1], 3, dtype=dtype)
    check(problem.seeing(blocks=lists_of(problem, 16, 50)))
    assert launched == [5, 0]


@pytest.mark.parametrize("page", [16, 64])
@pytest.mark.parametrize("block", [16, 4096])
def test_lists_that_reach_beyond_the_table(page, block):
    """Blocks that begin or end beyond the page table, and lists that hold nothing."""
    problem = latents([70, 40], [1, 1], 3, page=page)
    table = problem.keys.page_table[:, : -(-70 // page)].contiguous()
    for listed in ([0, 4], [0, -1], [-1, -1], [], [7, 9], [2**31 - 1, -1]):
        ids = torch.tensor(listed, dtype=torch.int32).expand(2, 1, -1)
        each = problem.seeing(blocks=BlockLists(ids, None, block), page_table=table)
        out, lse = check(each)
        if not listed or listed[0]:
            assert not out.any() and (lse == -torch.inf).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("page", [16, 64])
def test_a_row_does_not_depend_on_the_batch(dtype, page):
    """A row alone gives the bits that it gives among others, prompts and wider tables included."""
    problem = latents([200, 700, 90], [3, 1, 1], 3, dtype=dtype, page=page)
    lists = lists_of(problem, 16, 5, shared=True)
    for each in (problem, problem.seeing(window=50, sinks=3), problem.seeing(blocks=lists)):
        out, lse = answer(each)
        for s in (1, 2):
            begin, end = each.bounds()[s]
            alone = cut(each, s, 0, end - begin)
            pages = -(-alone.dense[0][0].shape[0] // page)
            alone = alone.seeing(page_table=alone.keys.page_table[:, :pages].contiguous())
            assert same(answer(alone), (out[begin:end], lse[begin:end]))


def test_sequences_without_rows():
    """As many rows as sequences, and yet not one of each."""
    problem = latents([90, 70], [2, 0], 3)
    check(problem)
    check(latents([90, 70, 40], [0, 1, 2], 3))


@pytest.mark.parametrize("wrong", [10**6, -1, 2**31 - 1])
@pytest.mark.parametrize("page", [16, 64])
def test_absent_pages(wrong, page):
    """Page ids outside the pool name no page: nobody reads there."""
    problem = latents([200], [1], 3, page=page, dtype=torch.float16)
    table = problem.keys.page_table.clone()
    table[:, 1] = wrong
    ids = torch.tensor([i for i in range(13) if i * 16 // page != 1], dtype=torch.int32)
    lists = BlockLists(ids.expand(1, 1, -1), None, 16)
    got, want = answer(problem.seeing(page_table=table)), answer(problem.seeing(blocks=lists))
    torch.testing.assert_close(got[0], want[0], atol=2e-3, rtol=0)
    torch.testing.assert_close(got[1], want[1], atol=1e-4, rtol=0)


def test_refusals():
    """What the kernel leaves to the others, and why."""
    problem = latents([70], [1], 4, 2)

    def reason(each: Problem, value_dim: int | None) -> str:
        return str(latent.refusal(each.having(value_dim=value_dim).call()))

    assert reason(problem, 32) == "None"
    assert reason(problem, None) == "values of their own"
    assert "more than the first 32" in reason(problem, 33)
    heads = BlockLists(torch.zeros((1, 4, 1), dtype=torch.int32), None, 16)
    assert reason(problem.seeing(blocks=heads), 32) == "lists of every head"
    assert rules.misfit(576, 512) is None and rules.misfit(320, 256) is None
    assert "more than 576" in str(rules.misfit(640, 512))


def test_the_cuda_kernel_leaves_latents_of_many_heads(monkeypatch):
    """It multiplies without tensor cores; where Triton cannot run it is better than nothing."""
    monkeypatch.setattr(cuda_native, "unsupported", lambda *tensors: None)
    monkeypatch.setattr(cuda_native, "shared_memory", lambda device: 227 << 10)
    few = latents([70], [1], 4).having(value_dim=32).call()
    many = latents([70], [1], 16).having(value_dim=32).call()
    assert cuda.supports(few) is None
    assert cuda.supports(many) == (
        "16 heads of a latent: Triton's kernel multiplies by tensor cores"
    )
    monkeypatch.setattr(gpu, "triton_refusal", lambda *tensors: "triton is not installed")
    assert cuda.supports(many) is None


@pytest.mark.parametrize(("heads", "groups"), [(16, 1), (128, 1), (64, 4)])
@pytest.mark.parametrize("keys", [500, 65536, 131072])
def test_scratch_is_counted(heads, groups, keys):
    """Partial results of latents' channels, of every split of every head."""
    most = rules.splits(keys, heads // groups, groups, 1)
    counted = gpu_scratch_bytes(256, 64, heads, groups, 576, 512, keys, latent=True)
    assert counted >= 64 * most * heads * (512 + 1) * 4


def test_tiles():
    """The pure functions: tiles fit pages and blocks, splits suffice for every length."""
    assert rules.tile(128, 2, 64, 0, (9, 0)) == rules.LatentTile(64, 64, False, 8, 2)
    assert rules.tile(128, 2, 64, 16, (9, 0)) == rules.LatentTile(32, 64, True, 8, 2)
    for group in (1, 16, 20, 33, 64, 128):
        for page in (16, 32, 64, 256):
            for block in (0, 4, 16, 32, 512):
                for capability in ((8, 0), (9, 0), (10, 0)):
                    for itemsize in (2, 4):
                        tile = rules.tile(group, itemsize, page, block, capability)
                        assert tile.spread or tile.keys <= min(page, block or page)
                        assert rules.least_keys(group) % tile.keys == 0
                        assert 16 <= tile.rows <= 64
        for keys in (1, 255, 256, 257, 5000, 131072):
            for parts, kv_heads in ((1, 1), (2, 1), (1, 4)):
                most = rules.most_splits(kv_heads, parts)
                each = max(rules.least_keys(group), -(-keys // most))
                assert -(-keys // each) <= rules.splits(keys, group, kv_heads, parts) <= most
    assert not rules.tensor_cores_pay(4) and rules.tensor_cores_pay(16)
