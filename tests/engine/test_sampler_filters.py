"""Filters, quantiles and the counter-based generator, on their own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade.engine.filters import draw_token, most_likely
from saccade.engine.randomness import draw_seed, philox4x32, uniform

MAX = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((MAX, MAX, MAX, MAX), (MAX, MAX), "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_known_answers(counter, key, words: str) -> None:  # type: ignore[no-untyped-def]
    assert " ".join(f"{word:08x}" for word in philox4x32(counter, key)) == words


def test_uniform_is_uniform_and_depends_on_all_of_its_arguments() -> None:
    numbers = np.array([uniform(seed, 0, step) for seed in range(20) for step in range(200)])
    assert numbers.min() >= 0 and numbers.max() < 1 and len(set(numbers)) == len(numbers)
    counts, _ = np.histogram(numbers, bins=16, range=(0, 1))
    assert ((counts - 250) ** 2 / 250).sum() < 45  # chi-square, 15 degrees of freedom
    base = uniform(3, 1, 5)
    assert base == uniform(3, 1, 5) == uniform(3 + 2**64, 1, 5)
    assert len({base, uniform(-3, 1, 5), uniform(3, 2, 5), uniform(3, 1, 5 + 2**32)}) == 4


def test_drawn_seeds_are_valid_and_fresh() -> None:
    seeds = {draw_seed() for _ in range(50)}
    assert len(seeds) == 50 and all(0 <= seed < 2**63 for seed in seeds)


@settings(max_examples=100, deadline=None)
@given(values=st.lists(st.integers(-4, 4), min_size=1, max_size=40), count=st.integers(1, 50))
def test_most_likely_is_a_stable_descending_sort(values: list[int], count: int) -> None:
    row = np.array(values, np.float32)
    expected = sorted(range(len(values)), key=lambda token: (-values[token], token))[:count]
    assert most_likely(row, count).tolist() == expected


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    top_p=st.sampled_from([1e-9, 0.05, 0.5, 0.9, 0.999]),
    levels=st.sampled_from([2, 1000]),
    spread=st.sampled_from([0.01, 3.0, 100.0]),
    last=st.sampled_from([0.0, -np.inf]),
)
def test_the_nucleus_is_what_a_full_sort_gives(seed, top_p, levels, spread, last) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(seed)
    row = (rng.integers(0, levels, 300) / levels * spread).astype(np.float32)
    row[-1] = last
    weights = np.exp(row.astype(np.float64) - float(row.max()))
    order = np.argsort(-row, kind="stable")
    reached = np.cumsum(weights[order])
    drawn = {draw_token(row, 1.0, 0, top_p, 0.0, step / 397) for step in range(397)}
    # A mass reached but for rounding may fall on either side of its token.
    low, high = (
        int(np.searchsorted(reached, top_p * reached[-1] * f)) for f in (1 - 1e-9, 1 + 1e-9)
    )
    assert drawn <= set(order[: high + 1].tolist())
    likely = weights[order[: low + 1]] / reached[low] > 2 / 397
    assert drawn >= set(order[: low + 1][likely].tolist())


@pytest.mark.parametrize("u", [0.0, 1 - 2.0**-53])
@pytest.mark.parametrize("settings_", [(0, 1.0, 0.0), (3, 1.0, 0.0), (0, 0.9, 0.0), (0, 1.0, 0.1)])
def test_the_ends_of_the_quantile_range_pick_possible_tokens(u: float, settings_) -> None:  # type: ignore[no-untyped-def]
    row = np.array([-np.inf, -300.0, 1.0, 1.1, 0.9, -300.0, -np.inf], np.float32)
    assert draw_token(row, 0.1, *settings_, u) in (2, 3, 4)


def test_top_k_cuts_ties_by_token_id() -> None:
    row = np.zeros(10, np.float32)
    drawn = {draw_token(row, 1.0, 3, 1.0, 0.0, step / 100) for step in range(100)}
    assert drawn == {0, 1, 2}
