"""Forced calls: what the grammar of a format allows is what its parser reads."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from saccade.engine.detokenizer import byte_level_alphabet
from saccade.engine.errors import RequestError
from saccade.engine.grammar import GrammarCompiler
from saccade.engine.structure import Structure
from saccade.engine.tokenizer import Tokenizer
from saccade.engine.tokenizer_files import TokenizerFiles
from saccade.server.tools import PARSERS, parse_whole
from saccade.server.tools.choice import MAX_CALLS, forced_calls, guarded_calls

SPECIAL = ["</s>", "[TOOL_CALLS]", "<tool_call>", "</tool_call>"]


def tool(name: str, parameters: Any = None) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


WEATHER = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/city"}, "days": {"type": "integer", "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
    "$defs": {"city": {"enum": ["Zürich", "Oslo"]}},
}
TOOLS = [tool("weather", WEATHER), tool('odd"\\name é'), tool("loose", {"required": []})]


def tokenizer(special: bool) -> Tokenizer:
    """Bytes, and the markers: as special tokens or not at all."""
    backend = tokenizers.Tokenizer(models.BPE(byte_level_alphabet(), []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL if special else SPECIAL[:1])
    return Tokenizer(TokenizerFiles(backend))


def written(structure: Structure, special: bool, seed: int, lead: str = "") -> str:
    """What a model without any sense writes within the structure; lead: its first words."""
    words = tokenizer(special)
    end = words.id_of("</s>")
    assert end is not None
    state = GrammarCompiler(words, words.vocab_size, [end]).compile(structure).copy()
    random = np.random.default_rng(seed)
    ids = words.encode(lead)
    for token in ids:
        assert state.allowed(words.vocab_size)[token], lead
        state.advance(token)
    while not state.is_complete and len(ids) < 1200:
        allowed = np.flatnonzero(state.allowed(words.vocab_size))
        token = int(random.choice(allowed))
        if token == end:
            break
        ids.append(token)
        state.advance(token)
    assert len(ids) < 1200
    return words.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("format", PARSERS)
def test_the_parser_reads_what_the_grammar_allows(format: str, special: bool) -> None:
    names, counts = set(), set()
    for seed in range(12):
        text = written(forced_calls(format, TOOLS[:2], many=True), special, seed)
        content, calls = parse_whole(PARSERS[format](tools=("weather", 'odd"\\name é')), text)
        assert content == ""
        assert 1 <= len(calls) <= MAX_CALLS
        for call in calls:
            schema = WEATHER if call.name == "weather" else {"maxProperties": 0}
            jsonschema.validate(json.loads(call.arguments), schema)
        names |= {call.name for call in calls}
        counts.add(len(calls))
    assert names == {"weather", 'odd"\\name é'}
    assert len(counts) > 1


@pytest.mark.parametrize("format", PARSERS)
def test_a_named_choice_is_one_call(format: str) -> None:
    for seed in range(3):
        text = written(forced_calls(format, TOOLS[:1], many=False), True, seed)
        content, calls = parse_whole(PARSERS[format](), text)
        assert (content, [call.name for call in calls]) == ("", ["weather"])


def test_arguments_are_an_object_whatever_the_schema_says() -> None:
    structure = forced_calls("hermes", TOOLS[2:], many=False)
    words = tokenizer(True)
    state = GrammarCompiler(words, words.vocab_size, [words.id_of("</s>") or 0]).compile(structure)
    assert state.allowed(words.vocab_size).any()
    assert '"type": "object"' in structure.text
    perhaps = forced_calls("hermes", [tool("f", {"type": ["string", "object"]})], many=False)
    assert '"type": "object"' in perhaps.text


@pytest.mark.parametrize(
    ("bad", "param"),
    [
        ({"type": "function"}, "tools[1].function.name"),
        ({"function": {"name": ""}}, "tools[1].function.name"),
        ({"function": {"name": 3}}, "tools[1].function.name"),
        (tool("f", "text"), "tools[1].function.parameters"),
        (tool("f", {"properties": {"id": {"enum": [2**60]}}}), "tools[1].function.parameters"),
        (tool("f", {"type": "foo"}), "tools"),
        (tool("f", {"type": ["array", "null"]}), "tools"),
        (tool("f", {"type": None}), "tools"),
        (tool("f", {"type": ["object", "foo"]}), "tools"),
    ],
)
def test_bad_tools_are_named(bad: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        forced_calls("hermes", [TOOLS[0], bad], many=True)
    assert caught.value.param == param


# ---- calls that a model may make ----

STRICT = [tool("weather", WEATHER), tool('odd"\\name é'), tool("loose", {"required": ["a"]})]
STRICT[0]["function"]["strict"] = True
NAMES = [each["function"]["name"] for each in STRICT]
ARGUMENTS = '{"city": "Oslo", "days": 3}'


def calling(format: str, name: str, arguments: str) -> str:
    """A call as a model of this format writes it."""
    key = "parameters" if format == "llama3_json" else "arguments"
    call = f'{{"name": {json.dumps(name, ensure_ascii=False)}, "{key}": {arguments}}}'
    return {
        "hermes": f"<tool_call>\n{call}\n</tool_call>",
        "llama3_json": call,
        "mistral": f"[TOOL_CALLS][{call}]",
    }[format]


def accepts(format: str, text: str, special: bool, many: bool = True) -> bool:
    """Whether a model could write this, in the tokens of the tokenizer, and end there."""
    words = tokenizer(special)
    end = words.id_of("</s>") or 0
    structure = guarded_calls(format, STRICT, many)
    state = GrammarCompiler(words, words.vocab_size, [end]).compile(structure).copy()
    for token in [*words.encode(text), end]:
        if state.is_complete:
            return token == end
        if not state.allowed(words.vocab_size)[token]:
            return False
        state.advance(token)
    return True


FREE = [
    "",
    'Hello, {"world": 1}',
    '{"answer": {"name": "weather"}}',
    '[{"name": "weather", "arguments": {}}]',
    "  \n",
    "a < b <tool >",
    "é 🎉 [TOOL CALLS]",
]


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("format", PARSERS)
def test_text_is_free_where_calls_are_guarded(format: str, special: bool) -> None:
    for text in FREE:
        assert accepts(format, text, special), text
        assert parse_whole(PARSERS[format](NAMES), text)[1] == []


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("format", PARSERS)
def test_a_call_must_keep_to_a_strict_schema(format: str, special: bool) -> None:
    before = "" if format == "llama3_json" else "I look it up.\n"
    good = [("weather", ARGUMENTS), ('odd"\\name é', '{"any": [1]}'), ("loose", "{}")]
    for name, arguments in good:
        text = before + calling(format, name, arguments)
        assert accepts(format, text, special), text
        (call,) = parse_whole(PARSERS[format](NAMES), text)[1]
        assert (call.name, call.arguments) == (name, arguments)
    bad = ["{}", '{"city": "Bern", "days": 3}', '{"city": "Oslo", "days": 30}', "[]", "null"]
    for text in [
        *(before + calling(format, "weather", arguments) for arguments in bad),
        before + calling(format, "unknown", "{}"),
        before + calling(format, "loose", "3"),
        before + calling(format, "weather", ARGUMENTS)[:-3],
    ]:
        assert not accepts(format, text, special), text


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("format", PARSERS)
def test_any_number_of_guarded_calls_or_one(format: str, special: bool) -> None:
    one, other = (calling(format, name, '{"city": "Oslo", "days": 3}') for name in NAMES[::2])
    both = {"hermes": f"{one}\n{other}", "llama3_json": f"{one}; {other}"}.get(format)
    if both is None:
        both = f"{one[:-1]}, {other.removeprefix('[TOOL_CALLS][')}"
    assert len(parse_whole(PARSERS[format](NAMES), both)[1]) == 2
    assert accepts(format, both, special) and not accepts(format, both, special, many=False)
    assert accepts(format, one, special, many=False)
    if format != "llama3_json":
        after = f"{both} and so on"
        assert accepts(format, after, special)  # a list of Mistral's is the only one
        assert accepts(format, after + both, special) == (format == "hermes")


def test_the_newer_form_of_mistral_is_guarded_too() -> None:
    text = f"Yes. [TOOL_CALLS]weather[ARGS]{ARGUMENTS}[TOOL_CALLS]loose[ARGS]{{}}"
    assert len(parse_whole(PARSERS["mistral"](NAMES), text)[1]) == 2
    for special in (False, True):
        assert accepts("mistral", text, special)
        assert not accepts("mistral", text.replace("Oslo", "Bern"), special)


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("format", PARSERS)
def test_what_a_senseless_model_calls_is_valid(format: str, special: bool) -> None:
    """With random tokens calls are rare: the marker, or the first key, is written for it."""
    lead = {"hermes": "<tool_call>", "llama3_json": '{"name"', "mistral": "[TOOL_CALLS]"}[format]
    seen = set()
    for seed in range(12):
        text = written(guarded_calls(format, STRICT[:2], many=False), special, seed, lead)
        (call,) = parse_whole(PARSERS[format](NAMES[:2]), text)[1]
        if call.name == "weather":
            jsonschema.validate(json.loads(call.arguments), WEATHER)
        assert isinstance(json.loads(call.arguments), dict)
        seen.add(call.name)
    assert seen == set(NAMES[:2])


@pytest.mark.parametrize("format", PARSERS)
def test_a_strict_schema_that_nothing_satisfies_is_refused(format: str) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": []}}, "required": ["a"]}
    wrong = tool("f", schema)
    wrong["function"]["strict"] = True
    words = tokenizer(True)
    with pytest.raises(RequestError):
        GrammarCompiler(words, words.vocab_size, [0]).compile(guarded_calls(format, [wrong], True))
