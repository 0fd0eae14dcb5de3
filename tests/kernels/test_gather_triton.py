"""Attention to selected blocks by blocks of keys, interpreted, against the definition."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from saccade.kernels.attend import ATTEND, gather, gather_rules
from saccade.kernels.attend.block_tiles import TilesCall
from saccade.kernels.attend.gather_index import block_tiles
from saccade.kernels.store import RowLayout
from saccade.kernels.testing import within_budget

from .paged import DTYPES, Problem, make, oracle, random_lists, same

pytestmark = [
    pytest.mark.usefixtures("interpreted"),
    pytest.mark.filterwarnings("ignore:invalid value", "ignore:Conversion of an array"),
]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def of_rows(lengths, chunks, block, owners, **options) -> Problem:
    """A problem with random lists; `owners` of them per row."""
    problem = make(lengths, chunks, layout_of=RowLayout, **options)
    return problem.seeing(blocks=random_lists(problem, block, owners))


def run(problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    """The two kernels, whether they pay or not."""
    return gather.attend(problem.call())


def check(problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    """Within 2.5 times the error of a plain implementation: partial results are rounded as the
    answer is, once more than there."""
    out, lse = run(problem)
    truth, truth_lse = oracle(problem, exact=True)
    rounded, rounded_lse = oracle(problem, exact=False)
    within_budget(out, rounded, truth, 2.5)
    within_budget(lse, rounded_lse, truth_lse, 3.0)
    return out, lse


@every_dtype
@pytest.mark.parametrize(("block", "page"), [(16, 64), (64, 64), (128, 64), (64, 16)])
def test_lists_of_heads(dtype, block, page):
    """MoBA: every query head chooses; ragged rows, a single one, empty lists, blocks to come."""
    check(of_rows([200, 70, 1], [90, 70, 1], block, 4, dtype=dtype, page=page))


@every_dtype
def test_lists_of_groups(dtype):
    """NSA: the three heads of a group share a list."""
    check(of_rows([200, 70], [130, 7], 64, 2, heads=6, dtype=dtype, dim=48, v_dim=40))


def test_softcap_sinks_and_wide_answers():
    problem = of_rows([150, 20], [100, 20], 32, 2, dtype=torch.float16, size=2.0)
    wide = problem.having(softcap=3.0, sink_logits=torch.randn(4), out_dtype=torch.float32)
    assert check(wide)[0].dtype == torch.float32


def test_a_list_of_nothing_gives_nothing():
    problem = of_rows([80], [80], 32, 4)
    nothing = replace(problem.keys.blocks, ids=torch.full((80, 4, 2), -1, dtype=torch.int32))
    out, lse = run(problem.seeing(blocks=nothing))
    assert bool((out == 0).all())
    assert bool((lse == -torch.inf).all())


def test_all_blocks_are_dense_attention():
    problem = of_rows([150], [100], 32, 2)
    ids = torch.arange(5, dtype=torch.int32).expand(100, 2, 5).contiguous()
    whole = problem.seeing(blocks=replace(problem.keys.blocks, ids=ids, list_of_row=None))
    out, _ = run(whole)
    within_budget(out, oracle(problem.seeing(blocks=None), False)[0], oracle(whole, True)[0], 2.5)


@every_dtype
def test_a_row_depends_on_no_cut_pass_or_company(dtype, monkeypatch):
    """Bit for bit: one call, two chunks, and passes of few rows."""
    problem = of_rows([200, 40], [150, 40], 32, 4, dtype=dtype)
    whole = run(problem)
    blocks = problem.keys.blocks
    lists = replace(blocks, list_of_row=blocks.list_of_row[60:150])
    keys = replace(
        problem.keys,
        cu_rows=torch.tensor([0, 90], dtype=torch.int32),
        positions=problem.keys.positions[60:150],
        page_table=problem.keys.page_table[:1],
        blocks=lists,
    )
    alone = run(replace(problem, q=problem.q[60:150], keys=keys))
    assert same(alone, (whole[0][60:150], whole[1][60:150]))
    monkeypatch.setattr(gather_rules, "rows_per_pass", lambda *_: 37)
    assert same(run(problem), whole)


def test_page_ids_do_not_matter():
    one, other = (of_rows([150], [60], 64, 2, shuffle=n) for n in (0, 5))
    blocks = one.keys.blocks
    assert same(run(one), run(other.seeing(blocks=blocks)))


def test_tiles_hold_every_past_entry_once():
    """In the order of sequence, block and KV head, then of rows; a repeated block counts once."""
    ids = torch.tensor([[[0, 1, 5], [0, 0, 2]], [[-1, -1, -1], [1, 2, 3]], [[0, 2, -1], [2, 2, 3]]])
    sequence, own = torch.tensor([0, 0, 1]), torch.tensor([4, 2, 3])
    tiles = block_tiles(TilesCall(ids.int(), sequence, own, 2, 6, 2, 2))
    found = []
    for group, first, count in zip(tiles.group, tiles.first, tiles.count, strict=True):
        found += [(int(group), int(code)) for code in tiles.order[first : first + count]]
        assert count <= 2
    expected = []
    for row in range(3):
        for owner in range(2):
            for place, block in enumerate(ids[row, owner].tolist()):
                repeated = place and block == ids[row, owner, place - 1]
                if 0 <= block < own[row] and not repeated:
                    group = (int(sequence[row]) * 6 + block) * 2 + owner
                    expected.append((group, (row * 2 + owner) * 3 + place))
    assert found == sorted(expected)


def test_when_it_pays():
    """Prefill of long prompts, not decode, and not chunks that hardly meet in a block."""
    assert gather_rules.pays(16384, 32, 8, 1, 1024, 8)  # 128 rows a block and KV head
    assert not gather_rules.pays(1, 32, 8, 1, 1024, 8)
    assert not gather_rules.pays(64, 32, 8, 64, 64, 8)
    assert not gather_rules.pays(256, 32, 8, 1, 8192, 8)
    assert gather_rules.rows_per_pass(32, 8, 128, 2) * 32 * 8 * 260 <= gather_rules.PARTIAL_BUDGET


def test_the_op_takes_it_where_it_pays():
    long = of_rows([300], [300], 64, 4)
    assert ATTEND.refusals(long.call())["gather"] is None
    few = of_rows([300], [20], 64, 4)
    assert "too few rows" in ATTEND.refusals(few.call())["gather"]
    bounded = long.seeing(window=20)
    assert "further bounds" in ATTEND.refusals(bounded.call())["gather"]
