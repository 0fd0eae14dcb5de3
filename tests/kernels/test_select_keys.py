"""Selection by key scores: every instruction set against the definition, margin-aware."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from saccade.kernels.select import Candidates
from saccade.kernels.select_keys import KeyRule, select_keys
from saccade.kernels.select_keys.reference import select_keys as by_reference

from .paged import DTYPES, Problem, make

LENGTHS, CHUNKS = [1300, 300, 5, 600], [20, 1, 5, 3]
RULES = [
    KeyRule(1, union="per_head"),
    KeyRule(6, 1, 2, "per_head"),
    KeyRule(4, 0, 1, "rank_major"),
    KeyRule(8, 1, 2, "rank_major"),
    KeyRule(8, 2, 1, "mean_prob"),
    KeyRule(200, 1, 1, "rank_major"),
]


def candidates_of(problem: Problem, block: int) -> Candidates:
    keys = problem.keys
    return Candidates(
        keys.cu_rows, keys.positions, keys.page_table, block, problem.layout.page_size
    )


def chosen(problem: Problem, rule: KeyRule, block: int, function=select_keys) -> torch.Tensor:
    _, lse = problem.run()
    select = candidates_of(problem, block)
    scale = problem.q.shape[2] ** -0.5
    return function(problem.layout, problem.q, problem.k, select, rule, scale, lse)


def block_scores(problem: Problem, block: int, mean_prob: bool) -> list[torch.Tensor]:
    """Per row float64 [heads or 1, blocks]: the best key of each block."""
    rows = []
    for (begin, end), (keys, _) in zip(problem.bounds(), problem.dense, strict=True):
        k = keys.double().repeat_interleave(problem.q.shape[1] // keys.shape[1], dim=1)
        scores = torch.einsum("thd,lhd->thl", problem.q[begin:end].double(), k)
        for row, each in enumerate(scores * problem.q.shape[2] ** -0.5):
            length = int(problem.keys.positions[begin + row]) + 1
            seen = each[:, :length]
            if mean_prob:
                seen = seen.softmax(-1).sum(0, keepdim=True)
            seen = torch.nn.functional.pad(seen, (0, -length % block), value=-torch.inf)
            rows.append(seen.unflatten(1, (-1, block)).amax(-1))
    return rows


def by_definition(scores: torch.Tensor, rule: KeyRule) -> list[list[int]]:
    """The rule, one head at a time, from the scores of one row."""
    blocks = scores.shape[1]
    first = list(range(min(rule.first, blocks)))
    recent = [j for j in range(blocks - rule.recent, blocks) if j >= len(first)]
    count = rule.listed - len(first) - len(recent)
    between = [j for j in range(blocks) if j not in (*first, *recent)]
    ranked = [sorted(between, key=lambda j: (-float(each[j]), -j)) for each in scores]
    if rule.union == "rank_major":
        merged: list[int] = []
        for rank in range(len(between)):
            merged += [each[rank] for each in ranked if each[rank] not in merged]
            merged = list(dict.fromkeys(merged))
        ranked = [merged]
    return [sorted([*first, *each[:count], *recent]) for each in ranked]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize(("block", "page"), [(16, 64), (64, 64), (128, 64), (32, 16), (512, 256)])
def test_selection(isa: str, dtype: torch.dtype, rule: KeyRule, block: int, page: int) -> None:
    """Whole numbers: scores of any precision are exact, so that lists agree to the last block."""
    whole = make(LENGTHS, CHUNKS, heads=6, page=page, dtype=dtype, dim=40)
    whole.q.mul_(2).round_()
    whole.k.copy_((torch.randn(whole.k.shape) * 2).round())
    tables = whole.keys.page_table.long().clamp(min=0)
    whole.dense = [
        (whole.layout.gather_keys(whole.k, tables[s])[:length], v)
        for s, (length, (_, v)) in enumerate(zip(LENGTHS, whole.dense, strict=True))
    ]
    ids = chosen(whole, rule, block)
    assert ids.shape == (29, rule.owners(6), rule.listed) and ids.dtype == torch.int32
    rows = block_scores(whole, block, rule.union == "mean_prob")
    for row, scores in enumerate(rows):
        for mine, truth in zip(ids[row].tolist(), by_definition(scores, rule), strict=True):
            mine = [j for j in mine if j >= 0]
            if rule.union != "mean_prob":
                assert mine == truth
                continue
            assert mine == sorted(set(mine)) and len(mine) == len(truth)
            swapped = (set(mine) - set(truth), set(truth) - set(mine))
            gaps = [scores[0, list(each)].sort().values for each in swapped]
            assert bool((gaps[0] - gaps[1]).abs().le(1e-4).all())  # probabilities are rounded


def test_one_head_or_agreeing_heads_need_no_union(isa: str) -> None:
    """With one head, its own list; with equal heads, the same."""
    alone = make([900], [9], heads=1, kv_heads=1)
    per_head, union = (KeyRule(7, 1, 2, each) for each in ("per_head", "rank_major"))
    assert torch.equal(chosen(alone, per_head, 16), chosen(alone, union, 16))
    equal = replace(alone, q=alone.q.expand(-1, 4, -1).contiguous())
    assert torch.equal(chosen(equal, union, 16), chosen(alone, union, 16))


@pytest.mark.parametrize("union", ["rank_major", "mean_prob"])
def test_a_needle_of_one_head_is_kept(isa: str, union: str) -> None:
    """Every head has a needle of its own: with as many blocks as heads, all are in the list."""
    problem = make([2000], [1], heads=4, kv_heads=4, page=64)
    places = [300, 700, 1100, 1500]
    for head, place in enumerate(places):
        page = int(problem.keys.page_table[0, place // 64])
        problem.k[page, head, :, place % 64, 0] = problem.q[0, head] * 4
    ids = chosen(problem, KeyRule(6, 1, 1, union), 16)[0, 0].tolist()
    assert {place // 16 for place in places} <= set(ids)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_equal_scores_take_the_later_block_and_nan_none(isa: str, rule: KeyRule) -> None:
    problem = make([640], [4])
    problem.q.round_()
    problem.k.fill_(1.0)
    ids = chosen(problem, rule, 64)
    free = rule.listed - rule.first - rule.recent
    expected = [*range(rule.first), *range(10 - rule.recent - free, 10)][: rule.listed]
    if rule.listed < 10:
        assert bool((ids == torch.tensor(expected, dtype=torch.int32)).all())
    problem.k[problem.keys.page_table[0, 7].long()] = torch.nan
    found = chosen(problem, rule, 64)
    if rule.union == "mean_prob":
        assert torch.equal(found.isnan(), torch.zeros_like(found, dtype=torch.bool))
        return
    assert bool((found != 7).all())
    assert torch.equal(found, chosen(problem, rule, 64, by_reference))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("union", ["per_head", "rank_major", "mean_prob"])
def test_a_row_selects_the_same_in_any_batch(isa: str, dtype: torch.dtype, union: str) -> None:
    problem = make([900, 400], [37, 3], dtype=dtype)
    rule, keys = KeyRule(6, 1, 2, union), problem.keys
    _, lse = problem.run()
    ids = chosen(problem, rule, 16)
    one = torch.tensor([0, 1], dtype=torch.int32)
    for s, (begin, end) in enumerate(problem.bounds()):
        for row in range(begin, end):
            at = slice(row, row + 1)
            alone = Candidates(one, keys.positions[at], keys.page_table[s : s + 1], 16, 64)
            found = select_keys(
                problem.layout, problem.q[at], problem.k, alone, rule, 32**-0.5, lse[at]
            )
            assert torch.equal(found[0], ids[row])


def test_a_table_that_ends_within_a_block(isa: str) -> None:
    """As an engine hands it out whose pages are smaller than the blocks."""
    problem = make([150], [3], page=16)
    rule = KeyRule(3, 0, 1, "per_head")
    found = chosen(problem, rule, 64)
    assert torch.equal(found, chosen(problem, rule, 64, by_reference))
    assert bool((found[:, :, -1] == 2).all())


def test_doors() -> None:
    problem = make([100], [1])
    lse, rule = torch.zeros(1, 4), KeyRule(3)
    rest = (candidates_of(problem, 64), rule, 1.0, lse)
    with pytest.raises(ValueError, match="does not fit"):
        select_keys(problem.layout, problem.q[..., :16], problem.k, *rest)
    with pytest.raises(ValueError, match="share a dtype"):
        select_keys(problem.layout, problem.q.bfloat16(), problem.k, *rest)
    with pytest.raises(ValueError, match=r"power of two in 16\.\.512"):
        select_keys(problem.layout, problem.q, problem.k, candidates_of(problem, 8), *rest[1:])
    for bad in ((0,), (2, 2, 1), (300,), (3, 0, 0, "all")):
        with pytest.raises(ValueError, match="KeyRule"):
            KeyRule(*bad)
