"""SamplingParams: what is accepted, what is refused, in which order, and with which words."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from saccade.engine.errors import RequestError
from saccade.engine.params import SamplingParams, validate_prompt_ids

NAN, INF = float("nan"), float("inf")


def test_defaults_are_valid_and_frozen() -> None:
    params = SamplingParams()
    assert params.max_tokens == 256 and not params.is_greedy and not params.has_penalties
    with pytest.raises(AttributeError):
        params.n = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "low", "high", "below", "above"),
    [
        ("n", 1, 128, 0, 129),
        ("max_tokens", 1, 2**31 - 1, 0, 2**31),
        ("min_tokens", 0, 256, -1, 2**31),
        ("temperature", 0, 100, -0.01, 100.1),
        ("top_k", -1, 2**31 - 1, -2, 2**31),
        ("top_p", 1e-9, 1, 0, 1.0001),
        ("min_p", 0, 1, -0.1, 1.1),
        ("repetition_penalty", 0.01, 100, 0.0, 101),
        ("presence_penalty", -2, 2, -2.1, 2.1),
        ("frequency_penalty", -2.0, 2.0, -3, 3),
        ("seed", -(2**63), 2**63 - 1, -(2**63) - 1, 2**63),
        ("logprobs", 0, 20, -1, 21),
        ("prompt_logprobs", 0, 20, -1, 21),
    ],
)
def test_ranges(name: str, low: float, high: float, below: float, above: float) -> None:
    for good in (low, high):
        SamplingParams(**{name: good})
    for bad in (below, above):
        with pytest.raises(RequestError, match=name) as error:
            SamplingParams(**{name: bad})
        assert error.value.param == name and "got" in str(error.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": NAN},
        {"top_p": INF},
        {"n": NAN},
        {"seed": -INF},
        {"logit_bias": {3: NAN}},
        {"stop": NAN},
        {"temperature": "1"},
        {"n": True},
        {"n": 1.0},
        {"top_k": None},
        {"temperature": False},
        {"seed": True},
        {"logprobs": "5"},
        {"ignore_eos": 1},
        {"detokenize": None},
        {"stop": 5},
        {"stop": ["a", 5]},
        {"stop": None},
        {"stop": ""},
        {"stop": ["a"] * 17},
        {"stop": "a" * 1025},
        {"stop_token_ids": [1, True]},
        {"stop_token_ids": "12"},
        {"stop_token_ids": [-1]},
        {"stop_token_ids": list(range(257))},
        {"logit_bias": [1]},
        {"logit_bias": {"1": 1.0}},
        {"logit_bias": {True: 1.0}},
        {"logit_bias": {1: "2"}},
        {"logit_bias": {1: 101}},
        {"logit_bias": {-1: 1}},
        {"n": 10**5000},
        {"temperature": 10**5000},
        {"seed": "x" * 10**6},
    ],
)
def test_refusals_name_the_field_and_stay_short(fields: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as error:
        SamplingParams(**fields)
    (name,) = fields
    assert error.value.param == name and name in str(error.value) and len(str(error.value)) < 250


@pytest.mark.parametrize(
    ("fields", "first"),
    [
        ({"n": "one", "min_p": NAN}, "min_p"),  # finite before type
        ({"n": 0, "detokenize": 1}, "detokenize"),  # type before range
        ({"min_tokens": 5, "max_tokens": 2, "top_p": 2.0}, "top_p"),  # range before cross-field
    ],
)
def test_order_of_the_checks(fields: dict[str, Any], first: str) -> None:
    with pytest.raises(RequestError) as error:
        SamplingParams(**fields)
    assert error.value.param == first


def test_rules_between_fields() -> None:
    with pytest.raises(RequestError, match=r"at most max_tokens \(2\), got 5") as error:
        SamplingParams(min_tokens=5, max_tokens=2)
    assert error.value.param == "min_tokens"
    SamplingParams(min_tokens=500, max_tokens=None)
    with pytest.raises(RequestError, match="detokenize"):
        SamplingParams(stop="x", detokenize=False)
    SamplingParams(n=3, temperature=0)


def test_lists_are_copied_so_that_a_caller_cannot_change_a_running_request() -> None:
    stop, ids, bias = ["a"], [1], {1: 2.0}
    params = SamplingParams(stop=stop, stop_token_ids=ids, logit_bias=bias)
    stop.append("b"), ids.append(2), bias.update({9: 1.0})
    assert params.stop_strings == ("a",) and params.stop_token_ids == (1,)
    assert params.logit_bias == {1: 2.0}
    assert SamplingParams(stop="a").stop == ("a",)
    assert pickle.loads(pickle.dumps(params)) == params  # noqa: S301 - it crosses processes whole


def test_the_engines_door_checks_again_and_bounds_token_ids() -> None:
    params = SamplingParams(stop_token_ids=[9], logit_bias={9: 1.0})
    params.check_against(10)
    with pytest.raises(RequestError, match="from 0 to 8"):
        params.check_against(9)
    with pytest.raises(RequestError, match="logit_bias"):
        SamplingParams(logit_bias={9: 1.0}).check_against(9)
    object.__setattr__(params, "temperature", NAN)
    with pytest.raises(RequestError, match="finite"):
        params.check_against(10)


@pytest.mark.parametrize("ids", [[], "abc", [1, 2, 10], [-1], [1.0], [True], [2**70], None, {1}])
def test_prompt_ids_refused(ids: Any) -> None:
    with pytest.raises(RequestError) as error:
        validate_prompt_ids(ids, 10)
    assert error.value.param == "prompt"


def test_prompt_ids_accepted() -> None:
    validate_prompt_ids([0, 9], 10)
    validate_prompt_ids((0, 9), 10)


def test_greedy_starts_just_above_zero() -> None:
    assert SamplingParams(temperature=0).is_greedy and SamplingParams(temperature=1e-6).is_greedy
    assert not SamplingParams(temperature=1e-4).is_greedy
