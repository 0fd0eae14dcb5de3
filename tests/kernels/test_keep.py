"""Which tokens expert-choice heads keep: the references against the rules, spelled out."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade.engine.kept_rule import KeptRule
from saccade.kernels.keep import (
    KEEP_ABOVE,
    KEEP_BEST,
    KEEP_TOP,
    KeptCounts,
    KeptState,
    ListRoom,
    keep_above,
    keep_best,
    keep_top,
)

PAGE = 4
Lists = list[list[int]]  # per head, the positions in the slots of its list


def room(rule: KeptRule, spans: list[tuple[int, int]], first: bool = False) -> ListRoom:
    """Rows of sequences that compute positions [start, stop)."""
    positions = torch.cat([torch.arange(a, b) for a, b in spans])
    cu_rows = torch.tensor([0, *(b - a for a, b in spans)]).cumsum(0).int()
    before, after = (
        torch.tensor([rule.most(t) for t in (positions + add).tolist()], dtype=torch.int32)
        for add in (0, 1)
    )
    return ListRoom(cu_rows, positions, before, after, first)


def some_scores(rows: int, heads: int, seed: int) -> torch.Tensor:
    """Few different values, so that many are equal, and a NaN here and there."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(1, 9, (rows, heads), generator=generator) / 10
    return scores.where(torch.rand((rows, heads), generator=generator) > 0.05, torch.nan)


def rank(first: bool, scores: list[float], t: int) -> tuple[bool, float, int]:
    """Worst first: NaN, then low scores, then early ones."""
    return first and t == 0, -1.0 if scores[t] != scores[t] else scores[t], t


def by_threshold(rule: KeptRule, scores: list[float], limit: float, first: bool) -> list[int]:
    """The slot of every position, or -1."""
    slots, length = [], 0
    for t, score in enumerate(scores):
        keeps = (score > limit or (first and t == 0)) and length < rule.most(t + 1)
        slots.append(length if keeps else -1)
        length += keeps
    return slots


def by_rank(rule: KeptRule, scores: list[float], first: bool) -> tuple[list[int], list[int]]:
    """The slot of every position or -1, and which position each slot has at last."""
    slots: list[int] = []
    kept: list[int] = []
    for t in range(len(scores)):
        if len(kept) < rule.most(t + 1):
            slots.append(len(kept))
            kept.append(t)
            continue
        worst = min(kept, key=lambda j: rank(first, scores, j))
        beaten = rank(first, scores, worst) < rank(first, scores, t)
        slots.append(kept.index(worst) if beaten else -1)
        if beaten:
            kept[slots[-1]] = t
    return slots, kept


rules = st.builds(
    KeptRule,
    st.integers(1, 6),
    fixed=st.sampled_from([0, 0, 2, 5]),
    percent=st.sampled_from([100, 125]),
    burst=st.sampled_from([0, 3]),
)
cases = st.tuples(rules, st.booleans(), st.integers(0, 2**30), st.data())


def a_cut(data: st.DataObject, length: int) -> list[tuple[int, int]]:
    cuts = data.draw(st.lists(st.integers(0, length), max_size=4))
    return [(a, b) for a, b in pairwise(sorted({0, length, *cuts})) if a < b]


def some_counts(sequences: int, tokens: int, heads: int, seed: int) -> KeptCounts:
    """Pages in any order, of any contents, for so many tokens of every sequence."""
    generator = torch.Generator().manual_seed(seed)
    width = -(-tokens // PAGE)
    pages = sequences * width + 2
    order = torch.randperm(pages, generator=generator)[: sequences * width].int()
    return KeptCounts(
        torch.full((pages, PAGE, heads), 7, dtype=torch.uint8),
        torch.full((pages, heads), 77, dtype=torch.int32),
        order.view(sequences, width),
    )


def test_keep_above_in_any_cut_beside_another_sequence(isa: str | None) -> None:
    """By every instruction set, and by the reference where there is none."""

    @settings(max_examples=60, deadline=None)
    @given(cases)
    def holds(case: tuple) -> None:
        check_above_in_any_cut(case)

    holds()


def check_above_in_any_cut(case: tuple) -> None:
    rule, first, seed, data = case
    length, heads = data.draw(st.integers(1, 40)), 3
    scores = some_scores(length, heads, seed)
    limits = torch.tensor([0.2, 0.45, 0.7])
    expected = torch.tensor(
        [by_threshold(rule, scores[:, e].tolist(), limits[e].item(), first) for e in range(heads)]
    ).T
    counts = some_counts(2, 40, heads, seed)
    for begin, end in a_cut(data, length):
        other = data.draw(st.integers(1, 5))  # a neighbour that begins with this step
        rows = torch.cat([scores[begin:end], some_scores(other, heads, seed + 1)])
        here = room(rule, [(begin, end), (0, other)], first)
        slots = keep_above(rows, limits, counts, here)
        assert torch.equal(slots[: end - begin], expected[begin:end].int())
        assert torch.equal(keep_above(rows, limits, counts, here), slots)  # it may be run again
    kept = (expected >= 0).int()
    for t in range(length):
        page = counts.table[0, t // PAGE]
        assert torch.equal(counts.flags[page, t % PAGE], kept[t].byte())
        assert torch.equal(counts.lengths[page].long(), kept[: t - t % PAGE].sum(0))


def test_keep_above_with_many_heads_and_pages_that_are_gone(isa: str | None) -> None:
    """Heads in several groups; a list whose last page is unknown begins anew, by everybody."""
    rule, heads, spans = KeptRule(2, burst=3), 37, [(9, 300), (0, 1), (64, 65)]
    scores = some_scores(293, heads, 0)
    limits, here = torch.linspace(0, 1, heads), room(rule, spans)
    ours = some_counts(3, 300, heads, 1)
    ours.flags.clamp_(max=1)
    ours.lengths.zero_()
    ours.table[2] = -1
    theirs = KeptCounts(ours.flags.clone(), ours.lengths.clone(), ours.table)
    found = keep_above(scores, limits, ours, here)
    assert torch.equal(found, KEEP_ABOVE.reference(scores, limits, theirs, here))
    assert torch.equal(ours.flags, theirs.flags) and torch.equal(ours.lengths, theirs.lengths)
    assert (found >= 0).any() and (found[292] <= 0).all()
    assert KEEP_ABOVE.refusals(scores, limits, ours, here)["cpu"] is None or isa is None


def test_keep_best_in_any_cut(isa: str | None) -> None:
    """By every instruction set, and by the reference where there is none."""

    @settings(max_examples=60, deadline=None)
    @given(cases)
    def holds(case: tuple) -> None:
        check_best_in_any_cut(case)

    holds()


def check_best_in_any_cut(case: tuple) -> None:
    rule, first, seed, data = case
    length, heads = data.draw(st.integers(1, 40)), 3
    scores = some_scores(length, heads, seed)
    pages = -(-rule.most(length) // PAGE)
    table = torch.randperm(pages + 2, generator=torch.Generator().manual_seed(seed))[None, :pages]
    shape = (pages + 2, heads, PAGE)
    state = KeptState(
        torch.full(shape, torch.nan), torch.full(shape, 77, dtype=torch.int32), table.int()
    )
    found = torch.cat(
        [keep_best(scores[a:b], state, room(rule, [(a, b)], first)) for a, b in a_cut(data, length)]
    )
    for e in range(heads):
        slots, kept = by_rank(rule, scores[:, e].tolist(), first)
        assert found[:, e].tolist() == slots
        own = state.positions[table[0], e].flatten()[: len(kept)]
        assert own.tolist() == kept
        assert torch.equal(
            state.scores[table[0], e].flatten()[: len(kept)],
            scores[torch.tensor(kept), e].nan_to_num(nan=-1.0),
        )


def test_keep_top_of_whole_texts(isa: str | None) -> None:
    """By every instruction set, and by the reference where there is none."""

    @settings(max_examples=60, deadline=None)
    @given(cases)
    def holds(case: tuple) -> None:
        check_top_of_whole_texts(case)

    holds()


def check_top_of_whole_texts(case: tuple) -> None:
    rule, first, seed, data = case
    lengths = data.draw(st.lists(st.integers(1, 25), min_size=1, max_size=3))
    scores = some_scores(sum(lengths), 2, seed)
    found = keep_top(scores, room(rule, [(0, n) for n in lengths], first))
    for own, slots in zip(scores.split(lengths), found.split(lengths), strict=True):
        for e in range(2):
            values = own[:, e].tolist()
            order = sorted(range(len(values)), key=lambda t: rank(first, values, t))
            best = sorted(order[len(values) - rule.most(len(values)) :])
            expected = [best.index(t) if t in best else -1 for t in range(len(values))]
            assert slots[:, e].tolist() == expected


@pytest.mark.parametrize("sparsity", [1, 3, 1000])
def test_keep_top_of_long_texts_is_the_reference(isa: str | None, sparsity: int) -> None:
    """Scores that differ in their last bits only, and many that are equal."""
    generator = torch.Generator().manual_seed(sparsity)
    scores = 0.5 + torch.randint(0, 900, (2500, 5), generator=generator) * 2**-24
    scores[:, 1] = 0.25  # all are equal
    scores[::7, 2] = torch.nan
    scores[:, 3] = scores[:, 3].where(torch.arange(2500) % 2 == 0, -0.0)
    for first in (False, True):
        whole = room(KeptRule(sparsity), [(0, 2000), (0, 1), (0, 499)], first)
        found = keep_top(scores, whole)
        assert torch.equal(found, KEEP_TOP.reference(scores, whole))
        assert KEEP_TOP.refusals(scores, whole)["cpu"] is None or isa is None


def test_the_kernel_is_the_reference_on_long_lists_of_many_sequences(isa: str | None) -> None:
    """Lists of 1 to 300 tokens in pages of any order, one row or many."""
    generator = torch.Generator().manual_seed(0)
    rule, starts, counts = KeptRule(2), (0, 600, 37, 100), (90, 1, 300, 5)
    spans = [(start, start + count) for start, count in zip(starts, counts, strict=True)]
    rows, heads, width = sum(counts), 3, -(-rule.most(601) // 16)
    table = torch.randperm(4 * width, generator=generator).int().view(4, width)
    shape = (4 * width, heads, 16)
    kept = torch.rand(shape, generator=generator)
    places = torch.randperm(kept.numel(), generator=generator).view(shape).int()
    scores = torch.rand((rows, heads), generator=generator)
    ours, theirs = (KeptState(kept.clone(), places.clone(), table) for _ in range(2))
    steps = room(rule, spans)
    found = keep_best(scores, ours, steps)
    assert torch.equal(found, KEEP_BEST.reference(scores, theirs, steps))
    assert torch.equal(ours.scores, theirs.scores)
    assert torch.equal(ours.positions, theirs.positions)
    assert KEEP_BEST.refusals(scores, ours, steps)["cpu"] is None or isa is None


def test_doors() -> None:
    rule = KeptRule(4)
    scores, whole = torch.rand(6, 2), room(rule, [(0, 6)])
    counts, limits = some_counts(1, 6, 2, 0), torch.zeros(2)
    with pytest.raises(ValueError, match=r"scores must be float32 \[T, E\]"):
        keep_top(scores.double(), whole)
    with pytest.raises(ValueError, match=r"positions must be torch.int64 \[5\]"):
        keep_top(scores[:5], ListRoom(*vars_of(whole, 5)))
    with pytest.raises(ValueError, match=r"cu_rows must rise from 0 to 5"):
        keep_top(scores[:5], whole)
    with pytest.raises(ValueError, match=r"sequences must be whole, they begin at \[3\]"):
        keep_top(scores, room(rule, [(3, 9)]))
    with pytest.raises(ValueError, match=r"thresholds must be float32 \[2\]"):
        keep_above(scores, torch.zeros(3), counts, whole)
    for bad, words in (
        (KeptCounts(counts.flags, counts.lengths[:1], counts.table), r"and \[pages, 2\]"),
        (KeptCounts(counts.flags.int(), counts.lengths, counts.table), "flags must be uint8"),
        (KeptCounts(counts.flags, counts.lengths, counts.table.long()), "table must be int32"),
    ):
        with pytest.raises(ValueError, match=words):
            keep_above(scores, limits, bad, whole)
    state = KeptState(
        torch.zeros(1, 2, PAGE), torch.zeros((1, 2, PAGE), dtype=torch.int32), torch.zeros((1, 1))
    )
    with pytest.raises(ValueError, match=r"table must be int32"):
        keep_best(scores, state, whole)
    with pytest.raises(ValueError, match=r"must be \[pages, 3, page size\]"):
        keep_best(torch.rand(6, 3), state, whole)


def vars_of(whole: ListRoom, rows: int) -> tuple:
    """The fields of a step with its row bounds cut to `rows`, the rest left too long."""
    bounds = torch.tensor([0, rows], dtype=torch.int32)
    return bounds, whole.positions, whole.before, whole.after, whole.first
