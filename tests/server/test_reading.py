"""Scripted answers: reasoning, then content and calls, whatever the pieces in which they come."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saccade.engine.engine import Engine
from saccade.engine.params import SamplingParams
from saccade.engine.structure import Structure
from saccade.server.chat import ChatTemplate
from saccade.server.formats import Formats
from saccade.server.items import ItemWriter
from saccade.server.protocol.chat import TokenLogprob
from saccade.server.reading import AnswerReader, is_object
from saccade.server.reasoning import Begins

from ..engine.tokenizers_for_tests import byte_level
from .chat_templates import FAMILIES
from .cuts import CUTS, pieces

A = '{"name": "f", "arguments": {"x": 1}}'
B = '{"name": "g", "arguments": {}}'
TWO = f"<tool_call>\n{A}\n</tool_call>\n<tool_call>\n{B}\n</tool_call>"
F, G = ("f", '{"x": 1}'), ("g", "{}")
Calls = list[tuple[str, str]]
# answer, whether it begins inside of the reasoning, and what it holds
SCRIPTS: list[tuple[str, bool, str, str, Calls]] = [
    ("<think>\nhm\n</think>\n\nYes.", False, "hm", "Yes.", []),
    ("hm</think>Yes.", True, "hm", "Yes.", []),
    (f"<think>call f</think>\n{TWO}", False, "call f", "", [F, G]),
    (f"so</think>I call.\n{TWO}", True, "so", "I call.", [F, G]),
    (f"still {TWO}", True, f"still {TWO}", "", []),  # a thought about a call is no call
    (TWO, False, "", "", [F, G]),
    ("<think></think>x", False, "", "x", []),
    ("No <think>here</think>", False, "", "No <think>here</think>", []),
    ("<thi", False, "", "<thi", []),
    ("", False, "", "", []),
]


def beginning(inside: bool) -> Begins:
    """Where a script begins."""
    return Begins.INSIDE if inside else Begins.BEFORE


def read(reader: AnswerReader, parts: list[str]) -> tuple[str, str, Calls]:
    """The answer put together as a client does."""
    reasoning, content = "", ""
    calls: list[tuple[str, str]] = []
    for number, part in enumerate(parts):
        news = reader.push(part, 1, last=number == len(parts) - 1)
        reasoning, content = reasoning + news.reasoning, content + news.content
        for delta in news.calls:
            if delta.name is not None:
                assert delta.index == len(calls) and delta.id
                calls.append((delta.name, ""))
            calls[-1] = (calls[-1][0], calls[-1][1] + delta.arguments)
    assert reader.num_calls == len(calls)
    return reasoning, content, calls


@given(st.sampled_from(SCRIPTS), CUTS, st.booleans())
def test_an_answer_in_any_pieces(script: Any, sizes: list[int], many: bool) -> None:
    text, inside, reasoning, content, calls = script
    reader = Formats("hermes", thinks=True).reader(beginning(inside), ("f", "g"), many)
    found = read(reader, [*pieces(text, sizes), ""])
    assert found == (reasoning, content, calls if many else calls[:1])


@given(st.sampled_from(SCRIPTS), st.booleans())
def test_tokens_of_reasoning_are_counted(script: Any, ends: bool) -> None:
    text, inside, *_ = script
    reader = Formats("hermes", thinks=True).reader(beginning(inside), (), True)
    read(reader, [*text, ""] if ends else list(text) or [""])
    end = text.find("</think>")
    expected = end + len("</think>") if end >= 0 else len(text) + ends if inside else 0
    begins = inside or text.startswith("<think>")
    assert reader.reasoning_tokens == (expected if begins else 0)


@given(st.integers(0, len(TWO)), CUTS)
def test_calls_that_are_cut_are_not_whole(end: int, sizes: list[int]) -> None:
    """An answer may end anywhere: its last call is whole as soon as its arguments are."""
    reader = Formats("hermes", thinks=False).reader(Begins.BEFORE, ("f", "g"), True)
    _, _, calls = read(reader, [*pieces(TWO[:end], sizes), ""])
    assert reader.calls_are_whole == (calls in ([], [F], [F, G]))
    arguments_of_f = TWO.index(F[1]) + len(F[1])
    if "name" in TWO[:end] and calls == [F]:
        assert end >= arguments_of_f


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("{}", True),
        (' {"a": [1, {"b": "}"}]} ', True),
        ('{"a": ' + "9" * 5000 + "}", True),
        ("", False),
        ('{"a": 1', False),
        ('{"a": 1}}', False),
        ("{'a': 1}", False),
        ("12", False),
        ('{"a": ' + "[" * 100_000, False),
    ],
    ids=lambda value: str(value)[:20],
)
def test_objects_are_told_from_parts_of_them(text: str, whole: bool) -> None:
    assert is_object(text) == whole


def test_nothing_is_looked_for_unless_the_model_writes_it() -> None:
    text = f"<think>a</think>{TWO}"
    assert read(Formats("hermes", thinks=False).reader(Begins.BEFORE, (), True), [text])[1] == text
    reasoning, content, calls = read(
        Formats(None, thinks=True).reader(Begins.BEFORE, ("f",), True), [text]
    )
    assert (reasoning, content, calls) == ("a", TWO, [])


@given(st.sampled_from(SCRIPTS), CUTS)
def test_behind_the_reasoning_there_is_only_an_answer(script: Any, sizes: list[int]) -> None:
    text = script[0]
    reader = Formats("hermes", thinks=True).reader(Begins.BEHIND, (), True)
    assert read(reader, [*pieces(text, sizes), ""]) == ("", text, [])
    assert reader.reasoning_tokens == 0


@given(st.integers(0, len(TWO)), CUTS)
def test_where_calls_are_forced_there_is_no_content(end: int, sizes: list[int]) -> None:
    reader = Formats("hermes", thinks=False).reader(Begins.BEFORE, ("f", "g"), True, forced=True)
    _, content, calls = read(reader, [*pieces(TWO[:end], sizes), ""])
    assert content == "" and [name for name, _ in calls] == ["f", "g"][: len(calls)]


def test_log_probabilities_are_those_of_the_text() -> None:
    """Markers, and the whitespace around the reasoning, are tokens that the text does not have."""
    reader = Formats(None, thinks=True).reader(Begins.BEFORE, (), True)
    writer = ItemWriter("x")
    tokens = ["<think>", "\n", "hm", "\n", "</th", "ink>", "\n\n", "", "é", " there"]
    for token in tokens:
        list(writer.write(reader.push(token, 1), [TokenLogprob(token, -1.0, None, [])]))
    list(writer.write(reader.push("", 0, last=True)))
    thought, message = writer.items
    assert thought.content[0].text == "hm" and message.content[0].text == "é there"
    assert [each.token for each in message.content[0].logprobs] == ["", "é", " there"]


def test_formats_are_read_from_the_template() -> None:
    def formats(family: str, **options: str) -> Formats:
        source = FAMILIES[family]
        templates = {"default": source} if isinstance(source, str) else source
        return Formats.of(ChatTemplate(templates), None, **options)

    assert formats("qwen3") == Formats("hermes", thinks=True)
    assert formats("deepseek") == Formats(None, thinks=True)
    assert formats("llama3.1") == Formats("llama3_json", many=False)
    assert formats("mistral") == Formats("mistral")
    assert formats("gemma") == Formats()
    named = formats("qwen3", tool_parser="none", reasoning_parser="none")
    assert named == Formats()
    assert formats("gemma", tool_parser="mistral", reasoning_parser="qwen3").thinks


def test_special_tokens_stay_where_a_marker_is_one(tmp_path: Path) -> None:
    from saccade.engine.tokenizer import Tokenizer
    from saccade.engine.tokenizer_files import TokenizerFiles

    backend = byte_level()
    backend.add_special_tokens(["[TOOL_CALLS]"])
    tokenizer = Tokenizer(TokenizerFiles(backend))
    formats = Formats.of(None, tokenizer, "mistral", "think")
    assert formats.keeps_special(calls=True) and not formats.keeps_special(calls=False)
    assert not Formats.of(None, tokenizer, "hermes").keeps_special(calls=True)
    backend.add_special_tokens(["</think>"])
    thinking = Formats.of(None, Tokenizer(TokenizerFiles(backend)), "none", "think")
    assert thinking.keeps_special(calls=False)


@pytest.mark.parametrize(
    ("structure", "answers"),
    [
        (Structure.choice(["yes"]).behind("</t>"), {"yes"}),
        (Structure.regex("no|maybe").behind("</t>", "<t>"), {"no", "maybe"}),
        (Structure("choice", '["a"]', otherwise=Structure.choice(["b", "c"])), {"a", "b", "c"}),
    ],
    ids=["behind", "behind or not", "otherwise"],
)
def test_forms_behind_a_marker_and_one_of_two(
    tiny: Path, structure: Structure, answers: set[str]
) -> None:
    with Engine(tiny, page_size=16, kv_cache_memory=8 << 20) as engine:
        params = [
            SamplingParams(structure=structure, max_tokens=300, seed=seed) for seed in range(12)
        ]
        outputs = engine.generate(["hi"] * 12, params)
    found = set()
    for output in outputs:
        text, reason = output.outputs[0].text, output.outputs[0].finish_reason
        free, marker, answer = text.rpartition("</t>")
        if structure.after and not structure.opening:
            assert marker or reason == "length"
        if reason == "stop":
            assert (free.startswith("<t>") or not free) or not structure.opening
            assert "</t>" not in free
            found.add(answer.strip(" \n"))
    assert found <= answers
    assert found or (structure.after and not structure.opening)
