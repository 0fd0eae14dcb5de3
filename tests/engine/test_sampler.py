"""The sampler: distributions, determinism, penalties, masks, and faults that stay in their row."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade.engine.errors import SaccadeError
from saccade.engine.params import SamplingParams
from saccade.engine.sampler import Sampled, Sampler
from saccade.engine.sampler_state import SamplerState

EOS = 1


def state(prompt: tuple[int, ...] = (5, 6), output: tuple[int, ...] = (), **fields: object):  # type: ignore[no-untyped-def]
    params = SamplingParams(**fields)  # type: ignore[arg-type]
    seed = 7 if params.seed is None else params.seed
    return SamplerState(params, prompt, [EOS], seed=seed, output=output)


def one(logits: torch.Tensor, row: SamplerState) -> Sampled:
    (result,) = Sampler().sample(logits.reshape(1, -1).float(), [row])
    return result


def draws(logits: torch.Tensor, count: int, **fields: object) -> np.ndarray:
    """Token counts [V] over `count` steps of one seeded request that sees the same logits."""
    row, counts = state(**fields), np.zeros(logits.numel(), int)
    for _ in range(count):
        token = one(logits, row).token
        counts[token] += 1
        row.advance(token)
    return counts


def chi_square_fits(counts: np.ndarray, probabilities: np.ndarray) -> bool:
    """A chi-square test at about 1e-4 (Wilson-Hilferty); seeds are fixed, so it never flakes."""
    seen = probabilities > 0
    if counts[~seen].any():
        return False
    expected = probabilities[seen] * counts.sum()
    statistic = float((((counts[seen] - expected) ** 2) / expected).sum())
    freedom = int(seen.sum()) - 1
    bound = freedom * (1 - 2 / (9 * freedom) + 3.72 * math.sqrt(2 / (9 * freedom))) ** 3
    return statistic < bound


def oracle(logits: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float):  # type: ignore[no-untyped-def]
    """The filtered distribution by full sorting, in float64: float64 [V]."""
    p = torch.softmax(logits.double() / temperature, -1).numpy()
    order = np.argsort(-p, kind="stable")
    if top_k > 0:
        order = order[:top_k]
    mass = np.cumsum(p[order]) / p[order].sum()
    order = order[: int(np.searchsorted(mass, top_p)) + 1] if top_p < 1 else order
    order = order[p[order] >= min_p * p.max()]
    kept = np.zeros_like(p)
    kept[order] = p[order]
    return kept / kept.sum()


FILTERS = [
    {},
    {"temperature": 0.5},
    {"temperature": 2.5},
    {"top_k": 5},
    {"top_p": 0.7},
    {"min_p": 0.2},
    {"top_k": 8, "top_p": 0.8},
    {"top_p": 0.9, "min_p": 0.15, "temperature": 1.4},
    {"top_k": 6, "top_p": 0.95, "min_p": 0.1},
    {"top_k": 500, "top_p": 0.5},
]


@pytest.mark.parametrize("fields", FILTERS)
def test_draws_follow_the_filtered_distribution(fields: dict[str, float]) -> None:
    logits = torch.randn(20, generator=torch.Generator().manual_seed(3)) * 0.8
    every = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | fields
    expected = oracle(logits, **every)  # type: ignore[arg-type]
    assert chi_square_fits(draws(logits, 4000, seed=11, **fields), expected)


def test_the_chi_square_test_can_fail() -> None:
    logits = torch.tensor([0.0, 0.2, 0.4, 0.6])
    wrong = np.full(4, 0.25)
    assert not chi_square_fits(draws(logits, 4000, seed=11), wrong)


@pytest.mark.parametrize(
    "fields", [{"seed": 1}, {"seed": 2, "top_p": 0.9}, {"seed": 3, "top_k": 9}]
)
def test_same_seed_same_tokens_in_any_batch_and_after_preemption(fields: dict[str, float]) -> None:
    steps = torch.randn(30, 4, 997, generator=torch.Generator().manual_seed(0)) * 2
    alone, batched = state(**fields), state(**fields)
    tokens: list[int] = []
    for number, logits in enumerate(steps):
        others = [state(seed=number), state(temperature=0), state(top_p=0.3, seed=number)]
        place = number % 4
        rows = [*others[:place], batched, *others[place:]]
        mine = logits[:1].expand(4, -1).clone() if number % 2 else logits.clone()
        mine[place] = logits[0]
        threads = torch.get_num_threads()
        torch.set_num_threads(1 if number % 3 else 2)
        token = Sampler().sample(mine, rows)[place].token
        torch.set_num_threads(threads)
        assert token == one(logits[0], alone).token
        rebuilt = state(output=tuple(tokens), **fields)
        assert token == one(logits[0], rebuilt).token
        tokens.append(token)
        alone.advance(token), batched.advance(token)
    assert len(set(tokens)) > 5


def test_unseeded_requests_draw_from_the_source_and_completions_differ() -> None:
    sampler = Sampler(seed_source=iter([4, 5]).__next__)
    first, second = (sampler.new_state(SamplingParams(), [1], []) for _ in range(2))
    assert (first.seed, second.seed) == (4, 5)
    assert (
        Sampler().new_state(SamplingParams(), [1], []).seed
        != Sampler().new_state(SamplingParams(), [1], []).seed
    )
    flat = torch.zeros(1000)
    seeded = SamplingParams(seed=9)
    siblings = [sampler.new_state(seeded, [1], [], stream=i) for i in range(6)]
    assert len({one(flat, sibling).token for sibling in siblings}) >= 5


def test_greedy_takes_the_lowest_of_equal_maxima() -> None:
    logits = torch.zeros(3, 5000)
    logits[:, [77, 78, 4999]] = 2.0
    rows = [state(temperature=0), state(temperature=0, presence_penalty=1.0), state(top_k=1)]
    assert [s.token for s in Sampler().sample(logits, rows)] == [77, 77, 77]


def test_greedy_fast_path_and_full_path_agree() -> None:
    logits = torch.randn(8, 300, generator=torch.Generator().manual_seed(1))
    plain = Sampler().sample(logits, [state(temperature=0)] * 8)
    full = Sampler().sample(logits, [state(temperature=0, logprobs=0)] * 8)
    assert [s.token for s in plain] == [s.token for s in full] == logits.argmax(-1).tolist()


@pytest.mark.parametrize("fields", [{"temperature": 0}, {}, {"temperature": 0, "logprobs": 3}])
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), "all -inf"])
def test_unusable_logits_fail_their_own_row_only(fields: dict[str, float], poison: object) -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    if poison == "all -inf":
        logits[1] = -torch.inf
    else:
        logits[1, 20] = poison  # type: ignore[assignment]
    first, failed, last = Sampler().sample(logits, [state(**fields) for _ in range(3)])
    assert isinstance(failed.error, SaccadeError) and failed.token == -1
    assert first.error is None and last.error is None
    assert first.token == one(logits[0], state(**fields)).token


def test_minus_infinity_is_never_drawn() -> None:
    logits = torch.full((40,), -torch.inf)
    logits[[3, 30]] = torch.tensor([0.0, 1.0])
    for fields in FILTERS:
        assert set(np.flatnonzero(draws(logits, 60, **fields))) <= {3, 30}


@pytest.mark.parametrize("temperature", [1e-4, 100.0])
def test_extreme_temperatures_stay_finite(temperature: float) -> None:
    logits = torch.tensor([3e38, -3e38, 0.0, 2.9e38])
    assert one(logits, state(temperature=temperature)).token == 0


def test_min_tokens_masks_every_end() -> None:
    logits = torch.tensor([0.0, 9.0, 5.0, 7.0])
    fields = {"temperature": 0, "min_tokens": 2, "stop_token_ids": [3]}
    assert one(logits, state(**fields)).token == 2
    assert one(logits, state(output=(0,), **fields)).token == 2
    assert one(logits, state(output=(0, 0), **fields)).token == EOS
    assert one(logits, state(ignore_eos=True, **fields)).token == EOS
    assert one(logits[1:2], state(temperature=0, min_tokens=1, stop_token_ids=[0])).error


def test_logit_bias_moves_the_choice() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0])
    assert one(logits, state(temperature=0, logit_bias={0: 2.5})).token == 0
    assert one(logits, state(temperature=0, logit_bias={2: -100, 1: -100.0})).token == 0


def naive_penalties(logits: list[float], prompt, output, params: SamplingParams) -> list[float]:  # type: ignore[no-untyped-def]
    adjusted = []
    for token, value in enumerate(logits):
        if token in prompt or token in output:
            r = params.repetition_penalty
            value = value / r if value > 0 else value * r
        times = output.count(token)
        value -= params.frequency_penalty * times + params.presence_penalty * (times > 0)
        adjusted.append(value)
    return adjusted


@settings(max_examples=60, deadline=None)
@given(
    prompt=st.lists(st.integers(0, 29), min_size=1, max_size=40),
    output=st.lists(st.integers(0, 29), max_size=60),
    repetition=st.sampled_from([1.0, 1.3, 0.7]),
    presence=st.sampled_from([0.0, 0.5, -1.0]),
    frequency=st.sampled_from([0.0, 0.25, -0.5]),
)
def test_penalties_against_the_definition(prompt, output, repetition, presence, frequency) -> None:  # type: ignore[no-untyped-def]
    params = SamplingParams(
        repetition_penalty=repetition, presence_penalty=presence, frequency_penalty=frequency
    )
    logits = np.linspace(-3, 3, 30, dtype=np.float32)
    before = logits.copy()
    row = SamplerState(params, prompt, [], seed=0, output=output)
    expected = naive_penalties(logits.tolist(), prompt, output, params)
    np.testing.assert_allclose(row.adjusted(logits), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(logits, before)


def test_the_sampler_only_reads_its_arguments() -> None:
    logits = torch.randn(2, 60, generator=torch.Generator().manual_seed(5))
    before = logits.clone()
    rows = [state(repetition_penalty=1.5, top_p=0.9, logprobs=2), state(min_tokens=3)]
    first, again = Sampler().sample(logits, rows), Sampler().sample(logits, rows)
    assert [s.token for s in first] == [s.token for s in again] and torch.equal(logits, before)


def test_wrong_shapes_are_the_callers_fault() -> None:
    assert Sampler().sample(torch.zeros(0, 9), []) == []
    for logits in (torch.zeros(2, 9), torch.zeros(9), torch.zeros(1, 9, dtype=torch.bfloat16)):
        with pytest.raises(ValueError, match="expected float32"):
            Sampler().sample(logits, [state()])


def test_sampling_under_inference_mode_and_on_strided_rows() -> None:
    with torch.inference_mode():
        wide = torch.randn(4, 80)[::2, ::2]
        assert all(s.error is None for s in Sampler().sample(wide, [state(top_k=3), state()]))
