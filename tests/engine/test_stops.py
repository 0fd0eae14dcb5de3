"""Stop strings against a naive search of the whole text; completions end to end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saccade.engine.completion import Completion
from saccade.engine.outputs import Logprob
from saccade.engine.params import SamplingParams
from saccade.engine.stops import StopChecker

from .tokenizers_for_tests import tokenizer

LETTERS = st.text("ab中", max_size=24)
STOPS = st.lists(st.text("ab中", min_size=1, max_size=5), min_size=1, max_size=4)


def naive(text: str, stops: list[str], include: bool, first_end: int = 0) -> tuple[str, str | None]:
    """Tries every end in order; `first_end`: ends before this position do not count."""
    for end in range(max(first_end, 1), len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            longest = max(ending, key=len)
            return text[: end if include else end - len(longest)], longest
    return text, None


@given(pieces=st.lists(LETTERS, max_size=8), stops=STOPS, include=st.booleans(), data=st.data())
def test_any_cut_gives_what_the_whole_text_gives(pieces, stops, include, data) -> None:  # type: ignore[no-untyped-def]
    unhonoured = data.draw(st.integers(0, len(pieces)))
    checker, shown, matched = StopChecker(stops, include), "", None
    for number, piece in enumerate(pieces):
        step = checker.push(piece, honour=number >= unhonoured)
        shown, matched = shown + step.text, step.matched
        if matched:
            assert checker.push("abab").text == ""
            break
    shown += checker.flush()
    first_end = len("".join(pieces[:unhonoured])) + 1
    assert (shown, matched) == naive("".join(pieces), stops, include, first_end)


@given(text=LETTERS, stops=STOPS)
def test_nothing_shown_could_still_become_a_stop_string(text: str, stops: list[str]) -> None:
    checker, shown = StopChecker(stops), ""
    for position, letter in enumerate(text, start=1):
        step = checker.push(letter)
        if step.matched:
            return
        shown += step.text
        held = text[len(shown) : position]
        # Held back is exactly the longest tail that begins some stop string.
        tails = [text[start:position] for start in range(position + 1)]
        assert held == max(
            (tail for tail in tails if any(s.startswith(tail) for s in stops)), key=len
        )


@pytest.mark.parametrize(
    ("stops", "include", "pieces", "texts"),
    [
        (["\n\n"], False, ["a\n", "b\n", "\nc"], ["a", "\nb", ""]),
        (["\n\n"], True, ["a\n", "\nc"], ["a", "\n\n"]),
        (["END"], False, ["xE", "N", "xEND"], ["x", "", "ENx"]),
        (["abcd", "c"], False, ["abcd"], ["ab"]),  # "c" is complete first
        (["bc", "abc"], False, ["abc"], [""]),  # complete together: the longest
        (["aab"], False, ["aaaab"], ["aa"]),
        ([], False, ["anything"], ["anything"]),
    ],
)
def test_examples(stops: list[str], include: bool, pieces: list[str], texts: list[str]) -> None:
    checker = StopChecker(stops, include)
    assert [checker.push(piece).text for piece in pieces] == texts


TOK = tokenizer("byte_level")


def run(text: str, params: SamplingParams, reason: str = "length") -> tuple[str, str, str | None]:
    """(streamed text, whole text, stop string) of a completion that samples `text`'s tokens."""
    completion, streamed, matched = Completion(0, params, TOK, [1]), "", None
    for token in TOK.encode(text, add_special_tokens=False):
        matched = completion.push(token)
        streamed += completion.delta().text
        if matched:
            break
    completion.finish("stop" if matched else reason, matched)
    streamed += completion.delta().text
    return streamed, completion.whole().text, matched


@given(text=st.text("he llo中🙂w", max_size=20), data=st.data(), include=st.booleans())
def test_streamed_and_whole_completions_are_equal(text, data, include) -> None:  # type: ignore[no-untyped-def]
    stops = data.draw(st.lists(st.text("he llo中🙂w", min_size=1, max_size=4), max_size=3))
    params = SamplingParams(stop=stops, include_stop_str_in_output=include)
    streamed, whole, matched = run(text, params)
    assert streamed == whole
    assert (whole, matched) == naive(text, stops, include)


def test_stop_strings_wait_for_min_tokens() -> None:
    text = "ababab"  # one token per letter
    assert run(text, SamplingParams(stop="ab"))[1] == ""
    assert run(text, SamplingParams(stop="ab", min_tokens=2))[1] == "ab"
    assert run(text, SamplingParams(stop="ab", min_tokens=3))[1] == "ab"
    assert run(text, SamplingParams(stop="ab", min_tokens=4))[1] == "abab"
    assert run(text, SamplingParams(stop="ab", min_tokens=6)) == (text, text, None)


@pytest.mark.parametrize("include", [False, True])
def test_a_stop_tokens_text_is_left_out_unless_asked_for(include: bool) -> None:
    params = SamplingParams(include_stop_str_in_output=include)
    completion = Completion(2, params, TOK)
    first, last = TOK.encode("a\n", add_special_tokens=False)
    completion.push(first)
    completion.push(last, is_stop=True)
    completion.finish("stop", last)
    whole = completion.whole()
    assert whole.text == ("a\n" if include else "a") and whole.token_ids == [first, last]
    assert (whole.index, whole.finish_reason, whole.stop_reason) == (2, "stop", last)
    assert whole.finished


def test_an_unfinished_character_comes_out_at_the_end_and_after_the_held_text() -> None:
    completion = Completion(0, SamplingParams(stop="ab"), TOK)
    for token in TOK.encode("xa🙂", add_special_tokens=False)[:-1]:
        assert completion.push(token) is None
    assert completion.delta().text == "x"
    completion.finish("length")
    assert completion.delta().text == "a\ufffd" and completion.whole().text == "xa\ufffd"


def test_logprobs_follow_their_tokens() -> None:
    completion = Completion(0, SamplingParams(logprobs=0), TOK)
    ids = TOK.encode("xyz", add_special_tokens=False)
    sizes = []
    for token in ids:
        completion.push(token, {token: Logprob(-0.5, 1)})
        delta = completion.delta()
        sizes.append((len(delta.logprobs or ()), delta.token_ids, delta.cumulative_logprob))
    assert sizes == [(1, [ids[0]], -0.5), (1, [ids[1]], -1.0), (1, [ids[2]], -1.5)]
    texts = [
        entry[token].decoded_token
        for entry, token in zip(completion.whole().logprobs or (), ids, strict=True)
    ]
    assert texts == ["x", "y", "z"]


def test_without_text() -> None:
    for tok, params in ((TOK, SamplingParams(detokenize=False)), (None, SamplingParams())):
        completion = Completion(0, params, tok)
        assert completion.push(5) is None
        completion.finish("length")
        assert completion.whole().text == "" and completion.whole().token_ids == [5]
