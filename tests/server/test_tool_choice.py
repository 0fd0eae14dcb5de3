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
from saccade.server.tools.choice import MAX_CALLS, forced_calls

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


def written(structure: Structure, special: bool, seed: int) -> str:
    """What a model without any sense writes within the structure."""
    words = tokenizer(special)
    end = words.id_of("</s>")
    assert end is not None
    state = GrammarCompiler(words, words.vocab_size, [end]).compile(structure).copy()
    random = np.random.default_rng(seed)
    ids: list[int] = []
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


@pytest.mark.parametrize(
    ("bad", "param"),
    [
        ({"type": "function"}, "tools[1].function.name"),
        ({"function": {"name": ""}}, "tools[1].function.name"),
        ({"function": {"name": 3}}, "tools[1].function.name"),
        (tool("f", "text"), "tools[1].function.parameters"),
    ],
)
def test_bad_tools_are_named(bad: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        forced_calls("hermes", [TOOLS[0], bad], many=True)
    assert caught.value.param == param
