"""Which tokens expert-choice heads keep, by the kernels in Triton, interpreted: the rules spelled
out, and the bits of the references.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings

from saccade.engine.kept_rule import KeptRule
from saccade.kernels import native
from saccade.kernels.keep import (
    KEEP_ABOVE,
    KEEP_BEST,
    KEEP_TOP,
    KeptCounts,
    KeptState,
    reference,
    triton,
)
from saccade.kernels.keep import keep_above as above_by_op

from . import test_keep
from .test_keep import room, some_scores

pytestmark = [
    pytest.mark.usefixtures("interpreted"),
    pytest.mark.filterwarnings("ignore:invalid value", "ignore:Conversion of an array"),
]


@pytest.mark.parametrize("rule", ["above", "best", "top"])
def test_any_cut(monkeypatch: pytest.MonkeyPatch, rule: str) -> None:
    """As the rules say, by the ops' doors, which have no compiled kernel to go to."""
    monkeypatch.setattr(native, "kernels", lambda: None)
    checks = {
        "above": test_keep.check_above_in_any_cut,
        "best": test_keep.check_best_in_any_cut,
        "top": test_keep.check_top_of_whole_texts,
    }

    @settings(max_examples=4, deadline=None)
    @given(test_keep.cases)
    def holds(case: tuple) -> None:
        checks[rule](case)

    holds()


def test_above_over_several_tiles_and_pages_that_are_gone() -> None:
    """Rows of more than one turn of the kernel; a list that begins in a page; a table of -1."""
    rule, heads, spans = KeptRule(2, burst=3), 5, [(9, 210), (0, 1), (3, 4)]
    scores, limits = some_scores(203, heads, 0), torch.linspace(0, 1, heads)
    ours = test_keep.some_counts(3, 216, heads, 1)
    ours.flags.clamp_(max=1)
    ours.lengths.zero_()
    ours.table[2] = -1
    theirs = KeptCounts(ours.flags.clone(), ours.lengths.clone(), ours.table)
    for first in (False, True):
        here = room(rule, spans, first)
        assert triton.supports_counts(scores, limits, ours, here) is None
        found = triton.keep_above(scores, limits, ours, here)
        assert torch.equal(found, reference.keep_above(scores, limits, theirs, here))
        assert torch.equal(ours.flags, theirs.flags)
        assert torch.equal(ours.lengths, theirs.lengths)
    assert (found >= 0).any() and (found < 0).any()


def test_best_of_long_lists_of_many_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists of several turns of the kernel, whose pages lie in any order; decode rows beside them.
    Scores are few, so that many are equal, and scores of the table's other rows are NaN.
    """
    monkeypatch.setattr(triton.sizes, "RANKED", 32)
    generator = torch.Generator().manual_seed(0)
    rule, starts, counts = KeptRule(2), (0, 100, 37), (24, 1, 12)
    spans = [(start, start + count) for start, count in zip(starts, counts, strict=True)]
    heads, width = 2, -(-rule.most(101) // 16)
    table = torch.randperm(3 * width, generator=generator).int().view(3, width)
    shape = (3 * width, heads, 16)
    kept = torch.randint(1, 9, shape, generator=generator) / 10
    places = torch.zeros(shape, dtype=torch.int32)
    positions = torch.stack([torch.arange(width * 16).roll(e) for e in range(heads)])
    for own in table.long():
        places[own] = positions.view(heads, width, 16).transpose(0, 1).int()
    scores = some_scores(sum(counts), heads, 3)
    for first in (False, True):
        ours, theirs = (KeptState(kept.clone(), places.clone(), table) for _ in range(2))
        steps = room(rule, spans, first)
        assert triton.supports_state(scores, ours, steps) is None
        found = triton.keep_best(scores, ours, steps)
        assert torch.equal(found, reference.keep_best(scores, theirs, steps))
        assert torch.equal(ours.scores, theirs.scores)
        assert torch.equal(ours.positions, theirs.positions)
    assert (found < 0).any()


@pytest.mark.parametrize("sparsity", [1, 3, 1000])
def test_top_of_long_texts(monkeypatch: pytest.MonkeyPatch, sparsity: int) -> None:
    """Scores that differ in their last bits only, many that are equal, zeros of both signs."""
    monkeypatch.setattr(triton.sizes, "RANKED", 512)
    generator = torch.Generator().manual_seed(sparsity)
    scores = 0.5 + torch.randint(0, 300, (900, 4), generator=generator) * 2**-24
    scores[:, 1] = 0.25
    scores[::7, 2] = torch.nan
    scores[:, 3] = torch.zeros(900).where(torch.arange(900) % 2 == 0, -0.0)
    for first in (False, True):
        whole = room(KeptRule(sparsity), [(0, 600), (0, 1), (0, 299)], first)
        assert triton.supports_scores(scores, whole) is None
        assert torch.equal(triton.keep_top(scores, whole), reference.keep_top(scores, whole))


def test_refusals() -> None:
    """Each says why; the doors then take the references."""
    rule = KeptRule(4)
    scores, whole = torch.rand(6, 2), room(rule, [(0, 6)])
    counts, limits = test_keep.some_counts(1, 6, 2, 0), torch.zeros(2)
    wide = KeptCounts(counts.flags.repeat(1, 1, 2)[..., :2], counts.lengths, counts.table)
    assert KEEP_ABOVE.refusals(scores, limits, wide, whole)["triton"] == "pages are not contiguous"
    odd = KeptCounts(counts.flags[:, :3].contiguous(), counts.lengths, counts.table)
    assert "no power of two" in KEEP_ABOVE.refusals(scores, limits, odd, whole)["triton"]
    assert above_by_op(scores, limits, odd, whole).shape == scores.shape
    ints = torch.zeros((1, 2, 4), dtype=torch.int32)
    state = KeptState(torch.zeros(1, 2, 8)[..., ::2], ints, torch.zeros((1, 1), dtype=torch.int32))
    assert KEEP_BEST.refusals(scores, state, whole)["triton"] == "pages are not contiguous"
    assert KEEP_TOP.refusals(scores, whole)["triton"] is None


def test_not_interpreted_they_refuse_host_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SACCADE_CUDA_INTERPRET")
    assert triton.supports_scores(torch.rand(6, 2), room(KeptRule(4), [(0, 6)])) == "tensor on cpu"
