"""Selection by key scores in Triton, interpreted, against its reference."""

from __future__ import annotations

import pytest
import torch

from saccade.kernels import triton_sizes
from saccade.kernels.select_keys import KeyRule, reference, triton
from saccade.kernels.select_keys import select_keys as by_op
from saccade.kernels.store import PageLayout

from .paged import Problem
from .test_ranking_triton import candidates_of, of_rows

pytestmark = [
    pytest.mark.usefixtures("interpreted"),
    pytest.mark.filterwarnings("ignore:invalid value", "ignore:Conversion of an array"),
]
UNIONS = ("per_head", "rank_major", "mean_prob")
SCALE = 0.25


def whole_numbers(problem: Problem, shared: bool) -> Problem:
    """Of few bits: scores are exact in any order, and many of them equal. shared: query heads of a
    KV head are the same, so that equal probabilities have equal sums.
    """
    problem.q.copy_(torch.randint(-1, 2, problem.q.shape))
    problem.k.copy_(torch.randint(-1, 2, problem.k.shape))
    if shared:
        problem.q[:] = problem.q[:, :1]
        problem.k[:] = problem.k[:, :1]
    return problem


def arguments(problem: Problem, block: int, rule: KeyRule):
    """Of the op: a denominator that makes shares no larger than one."""
    lse = torch.full(problem.q.shape[:2], 8.0)
    select = candidates_of(problem, block)
    return problem.layout, problem.q, problem.k, select, rule, SCALE, lse


def both(problem: Problem, block: int, rule: KeyRule) -> tuple[torch.Tensor, torch.Tensor]:
    """Lists of the kernels and of the reference."""
    call = arguments(problem, block, rule)
    assert triton.supports(*call) is None
    return triton.select_keys(*call), reference.select_keys(*call)


@pytest.mark.parametrize(
    ("union", "dtype", "block", "page"),
    [
        ("per_head", torch.bfloat16, 64, 16),
        ("per_head", torch.float16, 256, 64),
        ("rank_major", torch.float16, 16, 64),
        ("rank_major", torch.float32, 128, 64),
        ("mean_prob", torch.float32, 16, 64),
        ("mean_prob", torch.bfloat16, 64, 16),
        ("mean_prob", torch.float16, 256, 64),
    ],
    ids=str,
)
def test_selection(union, dtype, block, page):
    """Ragged rows on both sides of a block's border, three query heads of a KV head. Many scores
    are equal: the later block wins, and of equal ranks the earlier head.
    """
    problem = of_rows((2, 1, 1), dtype=dtype, page=page, heads=6, dim=40)
    problem = whole_numbers(problem, shared=union == "mean_prob")
    problem.keys.positions[:2] = torch.tensor([383, 384])
    for rule in (KeyRule(6, 1, 2, union), KeyRule(40, 0, 0, union)):
        found, wanted = both(problem, block, rule)
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("union", UNIONS)
def test_random_numbers_are_chosen_by_their_scores(union):
    """Scores of random numbers are not near each other: the same lists."""
    problem = of_rows((2, 1, 1), dtype=torch.float16, heads=6, dim=48)
    found, wanted = both(problem, 16, KeyRule(6, 1, 1, union))
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("union", UNIONS)
def test_nan_is_never_chosen(union):
    """Nor a page that is gone; a block with one key that is NaN has the others."""
    problem = whole_numbers(of_rows((2, 1, 1), heads=2, kv_heads=1, dim=16), shared=True)
    pages = problem.keys.page_table[0].long()
    problem.k[pages[1]] = torch.nan
    problem.k[pages[2], 0, 5] = torch.nan
    problem.k[pages[2], 0, 6] = 3 * problem.q[1, 0]
    problem.keys.page_table[0, 4] = -1
    for rule in (KeyRule(4, 0, 1, union), KeyRule(30, 2, 0, union)):
        found, wanted = both(problem, 32, rule)
        assert torch.equal(found, wanted)
    assert not {2, 3, 8, 9} & {*found[1].flatten().tolist()}


@pytest.mark.parametrize("union", UNIONS)
def test_a_row_selects_the_same_in_any_pass(monkeypatch, union):
    """Rows whose scores have no room together go one after the other."""
    problem = of_rows((3, 1, 1), dtype=torch.float16)
    rule = KeyRule(5, 1, 1, union)
    whole = triton.select_keys(*arguments(problem, 16, rule))
    per_row = (1 if union == "mean_prob" else 4) + 1
    blocks = candidates_of(problem, 16).blocks
    monkeypatch.setattr(triton_sizes, "SCORES", 2 * 4 * per_row * blocks)
    assert torch.equal(triton.select_keys(*arguments(problem, 16, rule)), whole)


@pytest.mark.parametrize("union", UNIONS)
def test_one_head_and_many(union):
    """A single query head, and twenty of a KV head, strided; by the op's door. Only probabilities
    ask for the denominator.
    """
    for heads, kv_heads in ((1, 1), (20, 1)):
        problem = of_rows((1, 1, 1), dtype=torch.float16, heads=heads, kv_heads=kv_heads)
        call = arguments(whole_numbers(problem, shared=True), 64, KeyRule(3, 0, 1, union))
        if union != "mean_prob":
            call[-1].fill_(1e4)
        strided = torch.zeros(3, heads, 64, dtype=torch.float16)[..., :32]
        strided.copy_(problem.q)
        found = by_op(call[0], strided, *call[2:])
        assert torch.equal(found, reference.select_keys(*call))


def test_what_is_left_to_others():
    problem = of_rows()
    layout, q, *rest = arguments(problem, 64, KeyRule(3))
    assert "layout" in triton.supports(PageLayout(64), q, *rest)
    assert "256" in triton.supports(layout, torch.zeros(10, 4, 300), *rest)
