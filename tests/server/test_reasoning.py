"""Splitting off what a model thinks: whole, streamed, cut anywhere."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saccade.server.reasoning import Begins, ReasoningSplitter, begins, continues, split_reasoning

from .cuts import CUTS, pieces


@pytest.mark.parametrize(
    ("text", "inside", "reasoning", "content"),
    [
        ("<think>\nHm.\n</think>\n\nYes.", False, "Hm.", "Yes."),
        ("Hm.\n</think>\n\nYes. ", True, "Hm.", "Yes. "),
        ("<think>\nHm.</think>Yes.", True, "Hm.", "Yes."),  # opened twice
        ("Yes.", False, "", "Yes."),
        (" \n Yes.", False, "", " \n Yes."),
        ("<thin", False, "", "<thin"),
        ("<think>never ends \n", False, "never ends", ""),
        ("never ends", True, "never ends", ""),
        ("<think></think>Yes.", False, "", "Yes."),
        ("<think>a < b </thin k></think>c", False, "a < b </thin k>", "c"),
        ("Say <think>x</think>.", False, "", "Say <think>x</think>."),
        ("<think>a</think>b<think>c</think>", False, "a", "b<think>c</think>"),
        ("", False, "", ""),
        ("", True, "", ""),
        (" \n", False, "", " \n"),
    ],
)
def test_splits(text: str, inside: bool, reasoning: str, content: str) -> None:
    assert split_reasoning(text, inside) == (reasoning, content)


PARTS = ["<think>", "</think>", "<thi", "nk>", "</", "a", " ", "\n", "é", "<", ">"]
TEXTS = st.lists(st.sampled_from(PARTS), max_size=14).map("".join)


@given(text=TEXTS, cuts=CUTS, inside=st.booleans())
def test_any_cut_gives_the_same(text: str, cuts: list[int], inside: bool) -> None:
    splitter = ReasoningSplitter(inside)
    found = [splitter.push(piece) for piece in pieces(text, cuts)] + [splitter.finish()]
    joined = "".join(each.reasoning for each in found), "".join(each.content for each in found)
    assert joined == split_reasoning(text, inside)


def test_comes_as_early_as_it_can() -> None:
    splitter = ReasoningSplitter()
    said = [
        splitter.push(text) for text in ("<thi", "nk>", "\nHm", " ...", " </th", "ink>", "\nYes")
    ]
    assert said == [("", ""), ("", ""), ("Hm", ""), (" ...", ""), ("", ""), ("", ""), ("", "Yes")]


def test_where_an_answer_begins() -> None:
    assert begins("<|Assistant|><think>\n") is Begins.INSIDE
    assert begins("<|im_start|>assistant\n<think>\n\n</think>\n\n") is Begins.BEHIND
    assert begins("<|im_start|>assistant\n") is Begins.BEFORE
    assert continues("<think>a</think><think>") is Begins.INSIDE
    assert continues("<think>a</think>") is Begins.BEHIND
    assert continues("Yes, and") is Begins.BEHIND
    assert continues(" ") is Begins.BEFORE
