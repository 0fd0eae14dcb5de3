"""Tool calls out of text: every format, whole and streamed, cut anywhere."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saccade.server.tools import PARSERS, ToolParser, guess_format, parse_whole
from saccade.server.tools.json_call import StringDecoder

from .chat_templates import CHATML, FAMILIES
from .cuts import CUTS, pieces

Calls = list[tuple[str, str]]
A = '{"name": "f", "arguments": {"x": 1}}'
TAGGED = f"<tool_call>\n{A}\n</tool_call>"
LLAMA = '{"name": "f", "parameters": {"x": 1}}'


def parser(format: str, **options: Any) -> ToolParser:
    made = PARSERS[format](**options)
    numbers = itertools.count()
    made.new_id = lambda: f"id{next(numbers)}"
    return made


def parsed(format: str, text: str, **options: Any) -> tuple[str, Calls]:
    content, calls = parse_whole(parser(format, **options), text)
    return content, [(call.name, call.arguments) for call in calls]


CASES: dict[str, list[tuple[str, str, Calls]]] = {
    "hermes": [
        ("Hello. ", "Hello. ", []),
        (TAGGED, "", [("f", '{"x": 1}')]),
        (f"Sure.\n{TAGGED}", "Sure.", [("f", '{"x": 1}')]),
        (f"{TAGGED}\n{TAGGED}\n", "", [("f", '{"x": 1}')] * 2),
        (f"A\n{TAGGED}\nB ", "A\nB ", [("f", '{"x": 1}')]),
        (f"<tool_call>{A}}}</tool_call>", "", [("f", '{"x": 1}')]),  # a brace too many
        (f"<tool_call>{A} tail", "tail", [("f", '{"x": 1}')]),  # never closed
        (f"<tool_call>{A}\n{TAGGED}", "", [("f", '{"x": 1}')] * 2),
        ("<tool_call>\nnothing\n</tool_call>", "<tool_call>\nnothing\n</tool_call>", []),
        (
            '<tool_call>{"arguments": {}}</tool_call>',
            '<tool_call>{"arguments": {}}</tool_call>',
            [],
        ),
        ('<tool_call>{"name": 3}</tool_call>', '<tool_call>{"name": 3}</tool_call>', []),
        ('<tool_call>{"name": "f"}</tool_call>', "", [("f", "{}")]),
        ('<tool_call>{"name": "f", "arguments": null}</tool_call>', "", [("f", "{}")]),
        (
            '<tool_call>{"arguments": {"a": [1]}, "name": "f"}</tool_call>',
            "",
            [("f", '{"a": [1]}')],
        ),
        (
            r'<tool_call>{"name": "f", "arguments": "{\"a\": \"\u00e9\n\"}"}',
            "",
            [("f", '{"a": "é\n"}')],
        ),
        (
            '<tool_call>{"name": "f", "arguments": {"a": "</tool_call>"}}',
            "",
            [("f", '{"a": "</tool_call>"}')],
        ),
        ('<tool_call>{"name": "f", "arguments": {"a": "x', "", [("f", '{"a": "x')]),
        ('<tool_call>{"name": "f", "arguments": {"a": <x>}}</tool_call>', "", [("f", '{"a": ')]),
        ('<tool_call>{"name": "g\\"é", "arguments": {}}</tool_call>', "", [('g"é', "{}")]),
        ('<tool_call>{"name": "f", "id": 7, "arguments": 3}</tool_call>', "", [("f", "{}")]),
        ("a <tool_cal", "a <tool_cal", []),
        (" \n", " \n", []),
        ("", "", []),
    ],
    "llama3_json": [
        ("Hello. ", "Hello. ", []),
        (LLAMA, "", [("f", '{"x": 1}')]),
        (f" <|python_tag|> {LLAMA}", "", [("f", '{"x": 1}')]),
        (f"{LLAMA}; {LLAMA}", "", [("f", '{"x": 1}')] * 2),
        (f"{LLAMA};<|python_tag|>{LLAMA}\n", "", [("f", '{"x": 1}')] * 2),
        (f'{{"type": "function", {LLAMA[1:]}', "", [("f", '{"x": 1}')]),
        (f"{LLAMA} and so on", "and so on", [("f", '{"x": 1}')]),
        ('{"answer": {"name": "f"}}', '{"answer": {"name": "f"}}', []),
        ('{"name": "stranger", "parameters": {}}', '{"name": "stranger", "parameters": {}}', []),
        (f"I call {LLAMA}", f"I call {LLAMA}", []),
        ('<|python_tag|>search.call(query="x")', '<|python_tag|>search.call(query="x")', []),
        ("<|pyth", "<|pyth", []),
        ('{"name": "f"', "", [("f", "")]),
        ('{"na', '{"na', []),
        ('{"name": "f", "reason": 1, "parameters": {}}', "", [("f", "{}")]),
        ("", "", []),
    ],
    "mistral": [
        ("Hello. ", "Hello. ", []),
        (f"[TOOL_CALLS] [{A}]", "", [("f", '{"x": 1}')]),
        (f"[TOOL_CALLS] [{A}, {A}]", "", [("f", '{"x": 1}')] * 2),
        (f"Sure. [TOOL_CALLS][{A}] Done", "Sure. Done", [("f", '{"x": 1}')]),
        (f"[TOOL_CALLS]{A}", "", [("f", '{"x": 1}')]),
        ('[TOOL_CALLS]f[ARGS]{"x": 1}', "", [("f", '{"x": 1}')]),
        ('[TOOL_CALLS]f{"x": 1}[TOOL_CALLS]g{}', "", [("f", '{"x": 1}'), ("g", "{}")]),
        ('[TOOL_CALLS]f[CALL_ID]abc123def[ARGS]{"x": "}"}', "", [("f", '{"x": "}"}')]),
        ("[TOOL_CALLS] nothing", "[TOOL_CALLS]nothing", []),
        ("[TOOL_CALLS] [3]", "3]", []),
        ("[TOOL_CA", "[TOOL_CA", []),
        ("", "", []),
    ],
}
ALL = [(format, *case) for format, cases in CASES.items() for case in cases]


@pytest.mark.parametrize(("format", "text", "content", "calls"), ALL)
def test_whole(format: str, text: str, content: str, calls: Calls) -> None:
    assert parsed(format, text, tools=("f", "g")) == (content, calls)


@pytest.mark.parametrize(("format", "text", "content", "calls"), ALL)
def test_character_by_character(format: str, text: str, content: str, calls: Calls) -> None:
    assert streamed(format, text, [1]) == (content, calls)


def streamed(format: str, text: str, cuts: list[int]) -> tuple[str, Calls]:
    """Joins the deltas as a client does, and checks their form on the way."""
    made = parser(format, tools=("f", "g"))
    found = [made.push(piece) for piece in pieces(text, cuts)] + [made.finish()]
    calls: list[list[str]] = []
    for delta in (delta for piece in found for delta in piece.deltas):
        if delta.name is not None:
            assert delta.index == len(calls)
            assert delta.id
            calls.append([delta.name, ""])
        else:
            assert delta.index == len(calls) - 1
            assert delta.id is None
            assert delta.arguments
        calls[delta.index][1] += delta.arguments
    return "".join(piece.content for piece in found), [(call[0], call[1]) for call in calls]


WORDS = {
    "hermes": ["<tool_call>", "</tool_call>", "<tool", "_call>", "\n", TAGGED],
    "llama3_json": ["<|python_tag|>", "<|py", ";", "; ", LLAMA],
    "mistral": ["[TOOL_CALLS]", "[TOOL", "[ARGS]", "[CALL_ID]", "[", "]", f"[TOOL_CALLS][{A}]"],
}
COMMON = ['{"name": "f", ', '"arguments": ', '"parameters": {', '"x": "a\\"}"', "}", "{", A, " "]
COMMON += [",", ":", "null", "12", '"', "\\", "é", "text", '"name"', "\\u00e9", "\\ud83d\\ude00"]


@st.composite
def texts(draw: Callable[[Any], Any]) -> tuple[str, str]:
    format = draw(st.sampled_from(sorted(PARSERS)))
    words = st.lists(st.sampled_from([*WORDS[format], *COMMON]), max_size=12)
    return format, "".join(draw(words))


@given(case=texts(), cuts=CUTS)
def test_any_cut_gives_the_same(case: tuple[str, str], cuts: list[int]) -> None:
    format, text = case
    whole = parsed(format, text, tools=("f", "g"))
    assert streamed(format, text, cuts) == whole
    if not whole[1] and "[TOOL_CALLS]" not in text:
        assert whole[0] == text


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(
    arguments=st.dictionaries(st.text(max_size=5), VALUES, max_size=3),
    ascii=st.booleans(),
    cuts=CUTS,
    format=st.sampled_from(sorted(PARSERS)),
)
def test_arguments_come_through(
    arguments: dict[str, Any], ascii: bool, cuts: list[int], format: str
) -> None:
    body = json.dumps(arguments, ensure_ascii=ascii)
    text = {
        "hermes": f'<tool_call>\n{{"name": "f", "arguments": {body}}}\n</tool_call>',
        "llama3_json": f'{{"name": "f", "parameters": {body}}}',
        "mistral": f'[TOOL_CALLS] [{{"name": "f", "arguments": {body}}}]',
    }[format]
    assert streamed(format, text, cuts) == ("", [("f", body)])


@given(text=st.text(st.characters(exclude_categories=["Cs"])), ascii=st.booleans())
def test_strings_are_decoded_as_they_come(text: str, ascii: bool) -> None:
    decoder = StringDecoder()
    assert "".join(map(decoder.take, json.dumps(text, ensure_ascii=ascii))) == text


def test_names_come_before_arguments_end() -> None:
    made = parser("hermes")
    first = made.push('Sure.\n<tool_call>\n{"name": "f", "arguments": {"city": "Zü')
    assert first.content == "Sure."
    assert [(each.name, each.arguments) for each in first.deltas] == [
        ("f", ""),
        (None, '{"city": "Zü'),
    ]
    assert [each.arguments for each in made.push('rich"}').deltas] == ['rich"}']
    assert made.push("}\n</tool_call>").deltas == []


def test_ids() -> None:
    openai = parse_whole(PARSERS["hermes"](), TAGGED)[1][0].id
    assert openai.startswith("call_") and len(openai) == 29
    mistral = parse_whole(PARSERS["mistral"](), f"[TOOL_CALLS][{A}]")[1][0].id
    assert len(mistral) == 9 and mistral.isalnum()
    own = parse_whole(PARSERS["mistral"](), "[TOOL_CALLS]f[CALL_ID]abc123def[ARGS]{}")[1][0].id
    assert own == "abc123def"


def test_the_format_is_read_off_the_template() -> None:
    hermes = FAMILIES["hermes"]
    assert isinstance(hermes, dict)
    found = {name: guess_format(text) for name, text in FAMILIES.items() if isinstance(text, str)}
    assert found["qwen2.5"] == found["qwen3"] == guess_format(hermes["tool_use"]) == "hermes"
    assert found["mistral"] == "mistral"
    assert found["llama3.1"] == "llama3_json"
    assert guess_format(CHATML) is None
