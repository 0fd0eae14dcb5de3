"""Structured output through the engine: with everything else that a request may ask for."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from saccade import Engine, RequestOutput, SamplingParams, Structure
from saccade.engine.errors import RequestError, SaccadeError
from saccade.engine.grammar_state import GrammarState

from .conftest import Checkpoints, Engines
from .engine_probe import small_pool, some_tokens, tokens_of

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 4},
        "kind": {"enum": ["a", "bc"]},
        "sizes": {"type": "array", "items": {"type": "integer", "maximum": 99}, "maxItems": 2},
    },
    "required": ["name", "kind", "sizes"],
    "additionalProperties": False,
}
WORD = Structure.regex("[a-d]{4,8}")
PROMPT = "def add(first, second):\n"


@pytest.fixture
def folder(checkpoint: Checkpoints) -> Path:
    """A tiny model with words: random weights, so that only the structure makes sense of it."""
    return checkpoint("llama", tokenizer=True, max_position_embeddings=1024)


@pytest.fixture
def engine(folder: Path, make_engine: Engines) -> Engine:
    return make_engine(folder)


def ask(structure: Structure | None = WORD, **fields: Any) -> SamplingParams:
    fields = {"temperature": 1.0, "seed": 5, "max_tokens": 200, **fields}
    return SamplingParams(structure=structure, **fields)


def text_of(output: RequestOutput) -> str:
    assert output.error is None
    assert len(output.outputs) == 1
    return output.outputs[0].text


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("temperature", [0.0, 1.0, 3.0])
def test_schemas_hold(engine: Engine, seed: int, temperature: float) -> None:
    fields = {"seed": seed, "temperature": temperature, "max_tokens": 400}
    output = engine.generate(PROMPT, ask(Structure.json_schema(SCHEMA), **fields))[0]
    jsonschema.validate(json.loads(text_of(output)), SCHEMA)
    assert output.outputs[0].finish_reason == "stop"
    assert output.outputs[0].stop_reason is None


def test_every_kind_ends_by_itself(engine: Engine) -> None:
    structures = [
        Structure.regex("[0-9]{3}"),
        Structure.choice(["yes", "no"]),
        Structure.grammar('start: "<" /[a-z]{1,4}/ ">"'),
        Structure.json_schema({"const": {"a": [1, "é"]}}),
    ]
    outputs = engine.generate([PROMPT] * 4, [ask(structure) for structure in structures])
    texts = [text_of(output) for output in outputs]
    assert re.fullmatch("[0-9]{3}", texts[0])
    assert texts[1] in ("yes", "no")
    assert re.fullmatch("<[a-z]{1,4}>", texts[2])
    assert json.loads(texts[3]) == {"a": [1, "é"]}
    assert {output.outputs[0].finish_reason for output in outputs} == {"stop"}


def test_a_length_limit_ends_it_early(engine: Engine) -> None:
    output = engine.generate(PROMPT, ask(Structure.regex("[a-d]{50}"), max_tokens=7))[0]
    assert len(output.outputs[0].token_ids) == 7
    assert output.outputs[0].finish_reason == "length"
    exact = engine.generate(PROMPT, ask(Structure.choice(["d"]), max_tokens=1))[0]
    assert (text_of(exact), exact.outputs[0].finish_reason) == ("d", "stop")


MIXED = [
    ask(Structure.json_schema(SCHEMA)),
    ask(None, max_tokens=30, ignore_eos=True),
    ask(WORD, temperature=0, max_tokens=30),
    ask(Structure.json_schema(SCHEMA), seed=9, repetition_penalty=1.3, top_k=20),
    ask(None, temperature=0, max_tokens=30, ignore_eos=True, frequency_penalty=0.5),
    ask(Structure.regex("(ab|cd){3,40}"), top_p=0.8, logit_bias={40: 5.0}),
    ask(Structure.json_schema(SCHEMA), seed=1, n=3),
    ask(None, max_tokens=30, n=2, ignore_eos=True),
]


def test_neighbours_do_not_notice_each_other(folder: Path, make_engine: Engines) -> None:
    prompts = [some_tokens(9 + seed, seed, 320) for seed in range(len(MIXED))]
    together = make_engine(folder).generate(prompts, MIXED)
    for prompt, params, output in zip(prompts, MIXED, together, strict=True):
        alone = make_engine(folder).generate(prompt, params)[0]
        assert tokens_of(alone) == tokens_of(output)


def test_preemption_does_not_advance_twice(folder: Path, make_engine: Engines) -> None:
    prompts = [some_tokens(14, seed, 320) for seed in range(6)]
    params = [ask(Structure.json_schema(SCHEMA), seed=seed) for seed in range(5)]
    params.append(ask(Structure.regex("([a-d]{2}-){20,60}"), n=1))
    small = small_pool(folder, 12, max_num_batched_tokens=40, max_num_seqs=6)
    crowded = make_engine(folder, **small).generate(prompts, params)
    assert sum(output.stats["preemptions"] for output in crowded) > 0
    roomy = make_engine(folder).generate(prompts, params)
    assert [tokens_of(each) for each in crowded] == [tokens_of(each) for each in roomy]
    for output in crowded[:5]:
        jsonschema.validate(json.loads(text_of(output)), SCHEMA)


def test_completions_of_one_prompt_go_their_own_ways(engine: Engine) -> None:
    output = engine.generate(PROMPT, ask(Structure.json_schema(SCHEMA), n=4))[0]
    texts = [each.text for each in output.outputs]
    assert len(set(texts)) == 4
    for text in texts:
        jsonschema.validate(json.loads(text), SCHEMA)


def test_min_tokens_forbids_the_end_where_more_may_follow(engine: Engine) -> None:
    """Where nothing may follow, the structure ends the completion all the same."""
    greedy = {"temperature": 0, "logit_bias": {1: 100.0}}  # </s>, whenever it is allowed
    short = engine.generate(PROMPT, ask(Structure.regex("[a-d]{1,40}"), **greedy))[0]
    assert len(text_of(short)) == len(short.outputs[0].token_ids[:-1]) == 1
    more = ask(Structure.regex("[a-d]{1,40}"), min_tokens=6, **greedy)
    longer = engine.generate(PROMPT, more)[0]
    assert len(longer.outputs[0].token_ids) == 7
    assert longer.outputs[0].finish_reason == "stop"
    whole = engine.generate(PROMPT, ask(Structure.choice(["ab"]), min_tokens=50))[0]
    assert (text_of(whole), whole.outputs[0].finish_reason) == ("ab", "stop")


def test_ignore_eos_goes_on_while_more_may_follow(engine: Engine) -> None:
    params = {"temperature": 0, "logit_bias": {1: 100.0}, "ignore_eos": True, "max_tokens": 12}
    output = engine.generate(PROMPT, ask(Structure.regex("[a-d]+"), **params))[0]
    assert 1 not in output.outputs[0].token_ids
    assert (len(output.outputs[0].token_ids), output.outputs[0].finish_reason) == (12, "length")
    ended = engine.generate(PROMPT, ask(Structure.regex("[a-d]{1,3}"), **params))[0]
    assert (len(text_of(ended)), ended.outputs[0].finish_reason) == (3, "stop")


def test_stop_strings_end_it_inside(engine: Engine) -> None:
    output = engine.generate(PROMPT, ask(Structure.regex("x{5}END[a-z]{30}"), stop="END"))[0]
    assert text_of(output) == "xxxxx"
    assert output.outputs[0].stop_reason == "END"


def test_stop_tokens_count_where_the_structure_allows_them(engine: Engine) -> None:
    tokenizer = engine.tokenizer
    assert tokenizer is not None
    b = tokenizer.encode_plain("b")[0]
    biased = {"temperature": 0, "logit_bias": {b: 50.0}, "stop_token_ids": [b]}
    output = engine.generate(PROMPT, ask(Structure.regex("a[a-d]{20}"), **biased))[0]
    assert output.outputs[0].token_ids[1:] == [b]
    assert output.outputs[0].stop_reason == b
    never = engine.generate(PROMPT, ask(Structure.regex("[cd]{9}"), **biased))[0]
    assert re.fullmatch("[cd]{9}", text_of(never))


def test_bias_and_penalties_choose_within_the_structure(engine: Engine) -> None:
    tokenizer = engine.tokenizer
    assert tokenizer is not None
    a, z = (tokenizer.encode_plain(letter)[0] for letter in "az")
    bias = {a: -100.0, z: 100.0}
    output = engine.generate(PROMPT, ask(Structure.regex("[ab]{12}"), logit_bias=bias))[0]
    assert text_of(output) == "b" * 12
    only = engine.generate(PROMPT, ask(Structure.regex("a{6}"), logit_bias=bias))[0]
    assert text_of(only) == "a" * 6
    varied = {"temperature": 0, "frequency_penalty": 2.0, "presence_penalty": 2.0}
    text = text_of(engine.generate(PROMPT, ask(Structure.regex("[ab]{12}"), **varied))[0])
    assert {"a", "b"} == set(text)


def test_logprobs_are_those_of_the_model(engine: Engine) -> None:
    """Raw, as without a structure: the mask only decides what is taken."""
    free = engine.generate(PROMPT, ask(None, temperature=0, max_tokens=1, logprobs=5))[0]
    bound = engine.generate(PROMPT, ask(WORD, temperature=0, max_tokens=1, logprobs=5))[0]
    first, second = free.outputs[0].logprobs, bound.outputs[0].logprobs
    assert first is not None and second is not None
    assert list(second[0].items())[:5] == list(first[0].items())[:5]


def test_streams_are_the_whole_in_pieces(engine: Engine) -> None:
    params = ask(Structure.json_schema(SCHEMA))
    pieces = [piece.outputs[0].text for piece in engine.stream(PROMPT, params)]
    assert "".join(pieces) == text_of(engine.generate(PROMPT, params)[0])
    assert len(pieces) > 3


def test_what_does_not_compile_is_refused_at_the_door(engine: Engine) -> None:
    with pytest.raises(RequestError, match="unknown name") as caught:
        engine.generate([PROMPT] * 2, [ask(), ask(Structure.grammar("start: nowhere"))])
    assert caught.value.param == "structure"
    assert not engine.scheduler.has_work


def test_a_state_that_cannot_go_on_fails_its_request_alone(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed = GrammarState.allowed
    calls: dict[int, int] = {}

    def broken(self: GrammarState, *args: Any) -> Any:
        calls[id(self)] = calls.get(id(self), 0) + 1
        if len(calls) == 2 and id(self) == list(calls)[1] and calls[id(self)] == 2:
            raise SaccadeError("the structure is too complex to follow")
        return allowed(self, *args)

    monkeypatch.setattr(GrammarState, "allowed", broken)
    params = [ask(temperature=0), ask(temperature=0), ask(None, temperature=0, max_tokens=9)]
    outputs = engine.generate([PROMPT] * 3, params)
    assert [output.error for output in outputs] == [
        None,
        "the structure is too complex to follow",
        None,
    ]
    assert re.fullmatch("[a-d]{4,8}", text_of(outputs[0]))


def test_an_ambiguous_grammar_does_not_stop_the_others(folder: Path, make_engine: Engines) -> None:
    """Its masks take longer with every token, here for many completions at a time."""
    engine = make_engine(folder, max_num_seqs=40)
    alone = engine.generate(PROMPT, ask(None, max_tokens=150))[0]
    hostile = Structure.grammar("start: e\ne: e e | e e e | /./ \n")
    attack = engine.add(engine.tokenizer.encode(PROMPT), ask(hostile, n=32))
    other = engine.add(engine.tokenizer.encode(PROMPT), ask(None, max_tokens=150))
    slowest = 0.0
    while engine.scheduler.has_work:
        began = time.monotonic()
        engine.step()
        slowest = max(slowest, time.monotonic() - began)
    assert attack.error == "the structure is too complex to follow"
    assert tokens_of(other.whole()) == tokens_of(alone)
    assert slowest < 4.0  # 32 times half a second, if every mask had its own limit alone


def test_masks_leave_the_logits_of_others_alone(engine: Engine) -> None:
    """The sampler works on copies: rows of a batch share one tensor."""
    state = engine.grammars.compile(WORD).copy()
    before = state.allowed(320)
    again = state.allowed(320)
    assert np.array_equal(before, again)
    assert 0 < before.sum() < 320
