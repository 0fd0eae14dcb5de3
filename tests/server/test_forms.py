"""Answers that are held to a form, and attention of a request's own, over HTTP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from saccade.engine.tokenizer import Tokenizer
from saccade.server.protocol.errors import KNOWN_FORMS, from_failure
from saccade.server.protocol.structures import StructuredOutputs
from saccade.server.wire import Piece

from .conftest import Serve
from .running import Running, completion, streamed

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 60}
SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "kind": {"enum": ["a", "b"]}},
    "required": ["ok", "kind"],
    "additionalProperties": False,
}

BAD = {"type": "string", "pattern": "("}
UNCLOSED, UNCLOSED_AT = (
    "unclosed group",
    'at 1(8): invalid regex "(" (in regex): regex parse error: unclosed group',
)


@pytest.fixture(scope="module")
def tight(tiny: Path) -> dict[str, float]:
    """A bias against white space, which this model would go on writing between two keys."""
    tokenizer = Tokenizer.from_folder(tiny)
    return {
        str(token): -100.0
        for token in range(tokenizer.vocab_size)
        if not tokenizer.text_of(token).strip()
    }


def chat(server: Running, **more: Any) -> str:
    reply = server.http.post("/v1/chat/completions", json={**CHAT, **more})
    assert reply.status_code == 200, reply.text
    content: str = reply.json()["choices"][0]["message"]["content"]
    return content


@pytest.mark.parametrize("seed", range(3))
def test_a_schema_is_kept_to(server: Running, seed: int, tight: dict[str, float]) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}
    more = {"response_format": form, "seed": seed, "logit_bias": tight}
    found = json.loads(chat(server, **more))
    assert set(found) == {"ok", "kind"} and found["kind"] in ("a", "b")
    chunks = streamed(server, "/v1/chat/completions", {**CHAT, **more})
    text = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks)
    assert json.loads(text) == found


def test_other_forms(server: Running, tight: dict[str, float]) -> None:
    def text(**form: Any) -> str:
        reply = completion(server, max_tokens=60, structured_outputs=form, logit_bias=tight)
        found: str = reply["choices"][0]["text"]
        return found

    assert text(choice=["yes", "no"]) in ("yes", "no")
    assert text(regex="[0-9]{4}").isdecimal()
    assert text(grammar='start: "a" "b"') == text(grammar='root ::= "a" b\nb ::= "b"') == "ab"
    assert set(json.loads(text(json=json.dumps(SCHEMA)))) == {"ok", "kind"}
    assert set(KNOWN_FORMS.split(", ")) <= set(StructuredOutputs.__struct_fields__)
    plain = {"type": "text"}
    assert chat(server, response_format=plain, seed=1) == chat(server, seed=1)


def test_forms_under_their_older_names(server: Running, tight: dict[str, float]) -> None:
    """vLLM's `guided_...`: a client that sends them believes that its answer is held to them."""

    def text(**form: Any) -> str:
        reply = completion(server, max_tokens=60, logit_bias=tight, **form)
        found: str = reply["choices"][0]["text"]
        return found

    assert text(guided_choice=["yes", "no"]) in ("yes", "no")
    assert text(guided_regex="[0-9]{4}").isdecimal()
    assert text(guided_grammar='start: "a" "b"') == "ab"
    assert set(json.loads(text(guided_json=SCHEMA))) == {"ok", "kind"}
    assert chat(server, guided_choice=["yes"], guided_regex=None) == "yes"


def test_what_vllms_own_clients_send_beside_a_form(server: Running) -> None:
    """`dataclasses.asdict` of its parameters: all options, which change nothing as they are."""
    options = {"disable_fallback": False, "disable_any_whitespace": False}
    options |= {"disable_additional_properties": False, "_backend_was_auto": False}
    none = ("json", "regex", "grammar", "json_object")
    none += ("whitespace_pattern", "structural_tag", "_backend")
    form = {"choice": ["yes"], **options, **dict.fromkeys(none)}
    assert chat(server, structured_outputs=form) == "yes"
    assert chat(server, structured_outputs={**form, "disable_fallback": True}) == "yes"
    document = server.http.get("/openapi.json").json()
    jsonschema.validate(form, document["components"]["schemas"]["StructuredOutputs"])


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"response_format": {"type": "yaml"}}, "one of text, json_object, json_schema"),
        ({"response_format": {"type": "json_schema"}}, "json_schema is missing"),
        (
            {"response_format": {"type": "text", "json_schema": {"schema": {}}}},
            "belongs to the type json_schema",
        ),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": BAD}}}, UNCLOSED),
        ({"structured_outputs": {"regex": "(", "choice": None}}, UNCLOSED),
        ({"structured_outputs": {"regex": "a(?!b)"}}, "look-around, including look-ahead"),
        ({"structured_outputs": {}}, f"one form of {KNOWN_FORMS}, got none"),
        ({"structured_outputs": {"regex": None, "json_object": False}}, "got none"),
        (
            {"structured_outputs": {"regexp": "a"}},
            f"`regexp`; the forms of this server are {KNOWN_FORMS}",
        ),
        (
            {"structured_outputs": {"structural_tag": "{}"}},
            "structured_outputs.structural_tag is not supported by this server: the forms",
        ),
        ({"structured_outputs": {"json_schema": {"type": "integer"}}}, "`json_schema`; the forms"),
        ({"structured_outputs": {"regex": "a", "whitespace_pattern": " "}}, "white space of JSON"),
        (
            {"structured_outputs": {"json": {}, "disable_additional_properties": True}},
            'write "additionalProperties": false into the schema',
        ),
        ({"structured_outputs": {"regex": "a", "disable_any_whitespace": 0}}, "not supported"),
        ({"structured_outputs": {"regex": "a", "_backend": "x"}}, "structured_outputs._backend is"),
        ({"structural_tag": "{}"}, "structural_tag is not supported"),
        ({"guided_whitespace_pattern": " "}, "guided_whitespace_pattern is not supported"),
        ({"guided_regex": "("}, f"guided_regex: the regex cannot be used: {UNCLOSED_AT}"),
        ({"guided_json": {"type": "foo"}}, "guided_json: the json_schema cannot be used: Invalid"),
        ({"guided_choice": []}, "guided_choice: choice must be a list"),
        ({"guided_regex": "a", "guided_choice": ["b"]}, "guided_regex and guided_choice exclude"),
        ({"guided_regex": "a", "structured_outputs": {"regex": "a"}}, "exclude each other"),
        ({"structured_outputs": {"grammar": "not a grammar"}}, ""),
        (
            {"structured_outputs": {"grammar": "root ::= nowhere"}},
            "structured_outputs: the grammar cannot be used: line 1: there is no rule 'nowhere'",
        ),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "one form"),
        ({"structured_outputs": {"choice": []}}, ""),
        ({"structured_outputs": {"json": {"type": "no such type"}}}, ""),
        (
            {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
            "exclude each other",
        ),
        ({"attention": "no-such-method"}, "no-such-method"),
        ({"attention": "window(size=0)"}, ""),
    ],
)
def test_forms_that_cannot_be(server: Running, more: dict[str, Any], words: str) -> None:
    for path, body in (("/v1/chat/completions", CHAT), ("/v1/completions", {"prompt": "x"})):
        for stream in (False, True):
            reply = server.http.post(path, json={**body, **more, "stream": stream})
            assert reply.status_code == 400, reply.text
            assert words in reply.json()["error"]["message"]


def test_a_form_that_cannot_be_followed_is_the_requests_own_fault() -> None:
    """It has compiled, and turns out to be too much later."""
    told = "the structure is too complex to follow"
    piece = Piece(0, "", [], "error", error=told, param="structure")
    error = from_failure(piece, {"structure": "response_format"})
    assert (error.status, error.info.param, error.info.message) == (400, "response_format", told)
    assert from_failure(Piece(0, "", [], "error", error="it broke")).status == 500


def test_attention_of_ones_own(server: Running) -> None:
    prompt = list(range(40, 140))
    dense = completion(server, prompt)
    narrow = completion(server, prompt, attention="window(size=16)")
    share = narrow["saccade"]["attention"]["decode"]["share"]
    assert dense["saccade"]["attention"]["decode"]["share"] == 1.0 and share < 0.3
    assert completion(server, prompt)["choices"] == dense["choices"]


def test_an_operator_bounds_what_requests_may_ask(server: Running, serve: Serve) -> None:
    """By default any method, but no chunks of one token; `--allowed-attention` says which."""

    def ask(where: Running, attention: str) -> str:
        body = {"prompt": [40] * 40, "max_tokens": 2, "attention": attention}
        reply = where.http.post("/v1/completions", json=body)
        if reply.status_code == 200:
            return "done"
        error = reply.json()["error"]
        assert reply.status_code == 400 and error["param"] == "attention"
        message: str = error["message"]
        return message

    assert "at least 128 here" in ask(server, "chunked(q_chunk=1,k_chunk=1)")
    assert "at least 128 here" in ask(server, "0:chunked(q_chunk=512,k_chunk=4); *:dense")
    assert ask(server, "chunked") == "done"
    tight = serve("--allowed-attention", "window, chunked", "--least-chunk", "8")
    assert ask(tight, "window(size=16)") == ask(tight, "chunked(8,8)") == "done"
    assert ask(tight, "dense") == "done"  # the engine's own
    refusal = ask(tight, "lessismore")
    assert "may not attend by lessismore here" in refusal
    assert "chunked, window" in refusal
