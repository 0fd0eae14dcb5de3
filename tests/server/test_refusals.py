"""What a client may not send, and what it hears: the field's name, and what would be right."""

from __future__ import annotations

import gzip
import json
import re
import time
from typing import Any

import pytest

from saccade.server.exchange import decoded
from saccade.server.protocol.completions import CompletionRequest
from saccade.server.protocol.errors import ApiError

from .running import Running, completion

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hi"}]


def refused(server: Running, status: int, path: str, body: Any, **sent: Any) -> dict[str, Any]:
    """The error of a reply, whose shape is always the same."""
    if "content" not in sent:
        sent["json"] = body
    reply = server.http.post(path, **sent)
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-request-id"]
    error = reply.json()["error"]
    assert set(reply.json()) == {"error"} and set(error) == {"message", "type", "param", "code"}
    assert error["message"] and error["type"]
    found: dict[str, Any] = error
    return found


BIG = 10**30
VALUES: list[tuple[dict[str, Any], str, str]] = [
    ({"n": 0}, "n", "from 1 to 128"),
    ({"n": 129}, "n", "from 1 to 128"),
    ({"n": True}, "n", "int"),
    ({"n": "2"}, "n", "int"),
    ({"n": 1.5}, "n", "int"),
    ({"n": BIG}, "n", "from 1 to 128"),
    ({"max_tokens": 0}, "max_tokens", "at least 1"),
    ({"max_tokens": -1}, "max_tokens", "from 1 to 2147483647"),
    ({"max_tokens": BIG}, "max_tokens", "from 1 to 2147483647"),
    ({"temperature": -0.1}, "temperature", "from 0 to 100"),
    ({"temperature": 101}, "temperature", "from 0 to 100"),
    ({"temperature": "hot"}, "temperature", "float"),
    ({"top_p": 0}, "top_p", "above 0 and at most 1"),
    ({"top_p": 1.1}, "top_p", "above 0 and at most 1"),
    ({"min_p": 2}, "min_p", "from 0 to 1"),
    ({"top_k": -2}, "top_k", "from -1 to"),
    ({"presence_penalty": 2.1}, "presence_penalty", "from -2 to 2"),
    ({"frequency_penalty": -2.1}, "frequency_penalty", "from -2 to 2"),
    ({"repetition_penalty": 0}, "repetition_penalty", "from 0.01 to 100"),
    ({"logprobs": 21}, "logprobs", "must be an integer from 0 to 20"),
    ({"logprobs": True}, "logprobs", "int"),
    ({"prompt_logprobs": -1}, "prompt_logprobs", "from 0 to 20"),
    ({"seed": 2**63}, "seed", "from -9223372036854775808"),
    ({"stop": ""}, "stop", "1 to 1024 characters"),
    ({"stop": ["x"] * 17}, "stop", "at most 16 entries"),
    ({"stop": [1]}, "stop[0]", "str"),
    ({"stop": {"a": "b"}}, "stop", "array"),
    ({"stop_token_ids": [320]}, "stop_token_ids", "from 0 to 319"),
    ({"stop_token_ids": [-1]}, "stop_token_ids", "none of them negative"),
    ({"logit_bias": {"x": 1}}, "logit_bias", "int"),
    ({"logit_bias": {"320": 1}}, "logit_bias", "from 0 to 319"),
    ({"logit_bias": {"3": 101}}, "logit_bias", "-100 to 100"),
    ({"min_tokens": 20, "max_tokens": 10}, "min_tokens", r"at most max_tokens \(10\)"),
    ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "must not be 0"),
    ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens", "at least 1, or -1"),
    ({"priority": 2**31}, "priority", "32-bit"),
    ({"cache_salt": ""}, "cache_salt", "1 to 256"),
    ({"cache_salt": "x" * 257}, "cache_salt", "1 to 256"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "stream to be true"),
    ({"stream": "yes"}, "stream", "bool"),
    ({"best_of": 3}, "best_of", "equal n"),
    ({"suffix": "end"}, "suffix", "not supported"),
    ({"use_beam_search": True}, "use_beam_search", "not supported"),
    ({"logits_processors": ["x"]}, "logits_processors", "not supported"),
    ({"prompt": ""}, "prompt", "at least one token"),
    ({"prompt": []}, "prompt", "not be empty"),
    ({"prompt": [[]]}, "prompt", "at least one token"),
    ({"prompt": [1, "a"]}, "prompt", "must not mix"),
    ({"prompt": [[1], 2]}, "prompt", "must not mix"),
    ({"prompt": [320]}, "prompt", "from 0 to 319, got 320 at position 0"),
    ({"prompt": [-1]}, "prompt", "got -1"),
    ({"prompt": [1.5]}, "prompt[0]", "int"),
    ({"prompt": [True]}, "prompt[0]", "int"),
    ({"prompt": {"text": "x"}}, "prompt", "str"),
    ({"prompt": ["x"] * 257}, "prompt", "at most 256 prompts, got 257"),
    ({"prompt": ["x"] * 200, "n": 2}, "n", "at most 256, got 200 x 2"),
    ({"n": 100, "max_tokens": 10_001}, "max_tokens", "at most 1000000, got 100 x 10001"),
    ({"n": 100, "max_tokens": 500, "logprobs": 20}, "logprobs", "100 x 500 x 21"),
    (
        {"prompt": [[5] * 400] * 120, "prompt_logprobs": 20},
        "prompt_logprobs",
        "at most 1000000, got 48000 x 1 x 21",
    ),
    (
        {"prompt": [[5] * 400] * 2, "n": 100, "prompt_logprobs": 20},
        "prompt_logprobs",
        "at most 1000000, got 800 x 100 x 21",
    ),
    (
        {"prompt": [[5] * 400] * 120, "echo": True, "logprobs": 20},
        "logprobs",
        "prompt tokens .* at most 1000000, got 48000 x 1 x 21",
    ),
]


@pytest.mark.parametrize(("more", "param", "words"), VALUES, ids=lambda v: str(v)[:40])
def test_values_of_a_completion(
    server: Running, more: dict[str, Any], param: str, words: str
) -> None:
    error = refused(server, 400, COMPLETIONS, {"model": "tiny", "prompt": "x", **more})
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert re.search(words, error["message"]), error


CHATS: list[tuple[dict[str, Any], str | None, str]] = [
    ({"messages": []}, "messages", "at least one|empty"),
    ({"messages": "hi"}, "messages", "array"),
    ({"messages": [1]}, "messages[0]", "object"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "messages", "no role wizard|role"),
    ({"messages": [{"role": "user"}]}, "messages", "content"),
    ({"messages": [{"content": "x"}]}, "messages[0].role", "role must be a text, got nothing$"),
    (
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        "messages[0].content[0].text",
        "must be a text, got nothing$",
    ),
    (
        {"messages": [{"role": "tool", "content": "x"}]},
        "messages[0].tool_call_id",
        "must be the id of a call in a message before it, got nothing$",
    ),
    ({"messages": [{"role": "user", "content": 3}]}, "messages", "content"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages",
        "image",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
        "messages",
        "audio",
    ),
    ({"top_logprobs": 3}, "top_logprobs", "needs logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "top_logprobs must be .* 0 to 20"),
    ({"logprobs": 3}, "logprobs", "bool"),
    ({"max_completion_tokens": 0}, "max_completion_tokens", "^max_completion_tokens must be"),
    ({"max_tokens": 0}, "max_tokens", "^max_tokens must be"),
    ({"max_tokens": 3, "max_completion_tokens": 4}, "max_completion_tokens", "contradict"),
    ({"audio": {"voice": "x"}}, "audio", "not supported"),
    ({"modalities": ["text", "audio"]}, "modalities", "not supported"),
    ({"functions": [{"name": "f"}]}, "functions", "not supported"),
    ({"chat_template": "{{ x }}"}, "chat_template", "not supported"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs", "must not hold"),
    (
        {"continue_final_message": True, "add_generation_prompt": True},
        "continue_final_message",
        "exclude each other",
    ),
]


@pytest.mark.parametrize(("more", "param", "words"), CHATS, ids=lambda v: str(v)[:40])
def test_values_of_a_chat(
    server: Running, more: dict[str, Any], param: str | None, words: str
) -> None:
    error = refused(server, 400, CHAT, {"model": "tiny", "messages": MESSAGES, **more})
    assert (error["param"] or "").startswith(param or "")
    assert re.search(words, error["message"]), error


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (COMPLETIONS, {"prompt": list(range(100)) * 6}, "prompt"),
        (COMPLETIONS, {"prompt": list(range(100)) * 5, "max_tokens": 60}, "prompt"),
        (CHAT, {"messages": [{"role": "user", "content": "word " * 600}]}, "messages"),
        (CHAT, {"messages": MESSAGES, "max_completion_tokens": 600}, "messages"),
    ],
)
def test_the_context_length_is_said_with_both_numbers(
    server: Running, path: str, body: dict[str, Any], param: str
) -> None:
    error = refused(server, 400, path, {"model": "tiny", **body})
    assert error["code"] == "context_length_exceeded" and error["param"] == param
    numbers = [int(word) for word in error["message"].replace(",", " ").split() if word.isdigit()]
    assert numbers[0] == 512 and len(numbers) >= 2 and max(numbers[1:]) >= 512


@pytest.mark.parametrize("limit", [None, 1, 2, 40, 511])
def test_a_prompt_that_is_cut_leaves_room_for_the_answer(
    server: Running, limit: int | None
) -> None:
    """truncate_prompt_tokens=-1: as much of the prompt as fits beside max_tokens."""
    body = {"truncate_prompt_tokens": -1, "max_tokens": limit, "ignore_eos": True}
    long = {"messages": [{"role": "user", "content": "word " * 600}]}
    for path, more, default in ((COMPLETIONS, {"prompt": [40] * 600}, 16), (CHAT, long, 1)):
        reply = server.http.post(path, json={**body, **more})
        assert reply.status_code == 200, reply.text
        usage, answer = reply.json()["usage"], limit or default
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (512 - answer, answer)
    error = refused(server, 400, COMPLETIONS, {"prompt": [40] * 600, **body, "max_tokens": 512})
    assert "1 in the prompt and 512 for the answer" in error["message"]


def test_a_text_that_cannot_fit_is_refused_before_it_is_encoded(server: Running) -> None:
    text = "def add " * 900_000  # it would take seconds
    chat = {"messages": [{"role": "user", "content": text}]}
    bodies: list[tuple[str, dict[str, Any], str]] = [
        ("/v1/completions", {"prompt": text}, "prompt"),
        ("/v1/completions", {"prompt": ["x", text]}, "prompt"),
        ("/v1/chat/completions", chat, "messages"),
        ("/v1/responses", {"input": text}, "input"),
        ("/v1/embeddings", {"input": [text]}, "input"),
    ]
    for path, body, param in bodies:
        began = time.monotonic()
        reply = server.http.post(path, json=body)
        error = reply.json()["error"]
        assert reply.status_code == 400 and error["code"] == "context_length_exceeded", error
        assert error["param"] == param and "at least" in error["message"]
        assert time.monotonic() - began < 2


FUNCTION = {"type": "function", "function": {"name": "f", "parameters": {}}}
TEXT_ITEM = {"role": "user", "content": "x"}


@pytest.mark.parametrize(
    ("path", "body", "param", "limit"),
    [
        (COMPLETIONS, {"prompt": [50] * 2_000_000}, "prompt", 512),
        (COMPLETIONS, {"prompt": ["x"] * 500_000}, "prompt", 256),
        (COMPLETIONS, {"prompt": "x", "stop_token_ids": [1] * 300}, "stop_token_ids", 256),
        (COMPLETIONS, {"prompt": "x", "stop": ["a"] * 17}, "stop", 16),
        (COMPLETIONS, {"prompt": "x", "guided_choice": ["a"] * 1025}, "guided_choice", 1024),
        (
            COMPLETIONS,
            {"prompt": "x", "logit_bias": {str(i): 1 for i in range(321)}},
            "logit_bias",
            320,
        ),
        (
            CHAT,
            {"messages": MESSAGES, "logit_bias": {str(i): 1 for i in range(321)}},
            "logit_bias",
            320,
        ),
        (CHAT, {"messages": MESSAGES * 16_385}, "messages", 16_384),
        (CHAT, {"messages": MESSAGES, "tools": [FUNCTION] * 129}, "tools", 128),
        (CHAT, {"messages": MESSAGES, "documents": [{}] * 16_385}, "documents", 16_384),
        ("/v1/responses", {"input": [TEXT_ITEM] * 16_385}, "input", 16_384),
        ("/v1/responses", {"input": "x", "tools": [FUNCTION] * 129}, "tools", 128),
        ("/v1/embeddings", {"input": ["x"] * 2049}, "input", 2048),
        ("/v1/embeddings", {"input": [50] * 2_000_000}, "input", 511),
        ("/tokenize", {"messages": MESSAGES * 16_385}, "messages", 16_384),
        ("/detokenize", {"tokens": [5] * 2_000_001}, "tokens", 2_000_000),
    ],
)
def test_too_many_entries_are_counted_before_they_are_looked_at(
    server: Running, path: str, body: dict[str, Any], param: str, limit: int
) -> None:
    reply = server.http.post(path, json=body)
    error = reply.json()["error"]
    assert reply.status_code == 400 and error["param"] == param, error
    assert f"at most {limit} " in error["message"]


def test_a_long_list_of_tokens_may_be_cut(server: Running) -> None:
    body = {"prompt": [50] * 100_000, "truncate_prompt_tokens": 20, "max_tokens": 1}
    assert completion(server, **body)["usage"]["prompt_tokens"] == 20
    reply = server.http.post(COMPLETIONS, json=body | {"prompt": [50] * 99_999 + ["x"]})
    assert "must not mix texts and token ids" in reply.json()["error"]["message"]


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT, "/tokenize", "/detokenize"])
def test_an_unknown_model(server: Running, path: str) -> None:
    bodies: dict[str, Any] = {CHAT: {"messages": MESSAGES}, "/detokenize": {"tokens": [5]}}
    body = bodies.get(path, {"prompt": "x"})
    error = refused(server, 404, path, {"model": "gpt-9", **body})
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "tiny" in error["message"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe",
        b'{"prompt": "\\ud800"}',
        b'{"prompt": NaN}',
        b'{"prompt": "x", "temperature": 1e999}',
        b'{"prompt": "x", "temperature": Infinity}',
        b'{"prompt": "x"} trailing',
        b'{"prompt": ' + b"[" * 100_000,
        b'{"prompt": "x", "logits_processors": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        b'{"n": ' + b"9" * 5000 + b', "prompt": "x"}',
        b"{}",
    ],
    ids=lambda content: content[:30].decode("latin-1"),
)
def test_bodies_that_cannot_be_read(server: Running, content: bytes) -> None:
    headers = {"content-type": "application/json"}
    for path in (COMPLETIONS, CHAT):
        refused(server, 400, path, None, content=content, headers=headers)


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (b"2.0", 2),
        (b"20e-1", 2),
        (b"1E2", 100),
        (b"-0.0", 0),
        (b"9007199254740993.0", 9007199254740993),  # no float is this number
        (b"2.5", None),
        (b"2e-1", None),
        (b'"2.0"', None),
        (b"1e30", 10**30),  # the range is another question
        (b"true", None),
    ],
)
def test_a_whole_number_may_be_written_as_a_float(given: bytes, read: int | None) -> None:
    content = b'{"prompt": "x", "temperature": 1.0, "seed": %s, "user": "\\u00fc"}' % given
    if read is None:
        with pytest.raises(ApiError) as caught:
            decoded(content, CompletionRequest)
        assert caught.value.info.param == "seed"
    else:
        body = decoded(content, CompletionRequest)
        assert (body.seed, type(body.seed), body.user) == (read, int, "\u00fc")


def test_only_integer_fields_are_read_so() -> None:
    """All else of the body is as it was sent: also what lies within a field that takes anything."""
    inner = {"type": "object", "properties": {"a": {"const": 2.0}}}
    text = json.dumps({"prompt": "x", "max_tokens": 5.0, "n": 1, "guided_json": inner})
    body = decoded(text.encode(), CompletionRequest)
    assert (body.max_tokens, body.n) == (5, 1)
    assert json.dumps(body.guided_json) == json.dumps(inner)
    for wrong in ('{"prompt": [1.0]}', '{"prompt": "x", "n": 1.0, "stop_token_ids": [3.0]}'):
        with pytest.raises(ApiError, match="got `float`"):
            decoded(wrong.encode(), CompletionRequest)


def test_whole_numbers_of_clients_without_integers(server: Running) -> None:
    body = {"prompt": "x", "max_tokens": 2.0, "n": 1.0, "top_k": 3.0, "logprobs": 1.0}
    assert server.http.post(COMPLETIONS, json=body).status_code == 200
    chat = {"messages": [{"role": "user", "content": "x"}], "max_completion_tokens": 2.0}
    assert server.http.post(CHAT, json=chat).status_code == 200
    answer = {"input": "x", "max_output_tokens": 2.0}
    assert server.http.post("/v1/responses", json=answer).status_code == 200
    for beyond in (0.0, 1e30):
        assert refused(server, 400, COMPLETIONS, {**body, "n": beyond})["param"] == "n"


def test_numbers_beyond_every_type_hear_the_range_too(server: Running) -> None:
    for number in (b'"temperature": 1e999', b'"max_tokens": ' + b"9" * 5000):
        content = b'{"prompt": "x", ' + number + b"}"
        headers = {"content-type": "application/json"}
        error = refused(server, 400, COMPLETIONS, None, content=content, headers=headers)
        name = error["param"]
        assert error["message"].startswith(f"{name} must be a") and " to " in error["message"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"prompt":"a","\\ud800":1}', "half of a utf-16 surrogate pair"),
        (b'{"prompt":"\\ud83dab"}', "half of a utf-16 surrogate pair"),
        (b'{"\xff":1,"prompt":"\\ud83d"}', "truncated"),  # one mistake at a time
        (b'{"prompt":"\\ude00"}', "invalid utf-16 surrogate pair"),
        (b'{"prompt":"a', "truncated"),
        (b'{"prompt":"\\u00e4', "truncated"),
        (b'{"prompt":"abc\xff"}', "a string is not UTF-8 (invalid start byte 0xff)"),
    ],
)
def test_a_body_that_is_no_json_is_told_why(server: Running, content: bytes, words: str) -> None:
    headers = {"content-type": "application/json"}
    error = refused(server, 400, COMPLETIONS, None, content=content, headers=headers)
    assert error["code"] == "invalid_json" and words in error["message"]


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin1", ""],
)
def test_a_body_of_another_type(server: Running, kind: str) -> None:
    body = json.dumps({"prompt": "x"}).encode()
    headers = {"content-type": kind} if kind else {}
    error = refused(server, 415, COMPLETIONS, None, content=body, headers=headers)
    assert "application/json" in error["message"]


@pytest.mark.parametrize("encoding", ["gzip", "br", "identity, zstd"])
def test_a_compressed_body(server: Running, encoding: str) -> None:
    headers = {"content-type": "application/json", "content-encoding": encoding}
    body = gzip.compress(json.dumps({"prompt": "x"}).encode())
    error = refused(server, 415, COMPLETIONS, None, content=body, headers=headers)
    assert encoding in error["message"] and error["code"] == "unsupported_content_encoding"
    headers["content-encoding"] = "identity"
    plain = json.dumps({"prompt": "x", "max_tokens": 1}).encode()
    reply = server.http.post(COMPLETIONS, content=plain, headers=headers)
    assert reply.status_code == 200


def test_unknown_addresses_and_methods(server: Running) -> None:
    for path in ("/v2/completions", "/v1/completions/", "/v1", "/../etc/passwd", "/%00"):
        reply = server.http.get(path)
        assert reply.status_code == 404 and reply.json()["error"]["code"] == "not_found", path
    reply = server.http.get(COMPLETIONS)
    assert reply.status_code == 405 and reply.headers["allow"] == "POST"
    assert reply.json()["error"]["code"] == "method_not_allowed"
    assert server.http.delete("/v1/models").status_code == 405


def test_nul_and_other_strange_characters_are_text(server: Running) -> None:
    for text in ("\0", "a\0b", "\u202e", "\ufffe", "😀" * 5, "\r\n\r\n"):
        assert completion(server, text)["usage"]["prompt_tokens"] > 0


def test_fields_that_nobody_knows_are_passed_over(server: Running) -> None:
    known = completion(server, "def add")
    more = completion(server, "def add", favourite_colour="blue", metadata={"a": "b"}, user="me")
    assert more["choices"] == known["choices"]
    neutral = completion(
        server, "def add", best_of=1, suffix=None, use_beam_search=False, stop=None
    )
    assert neutral["choices"] == known["choices"]


def test_request_ids(server: Running) -> None:
    def echoed(given: str) -> str:
        return server.http.get("/v1/models", headers={"x-request-id": given}).headers[
            "x-request-id"
        ]

    assert echoed("mine-1") == "mine-1"
    assert echoed("with space") != "with space" and echoed("x" * 129) != "x" * 129
    reply = server.http.post(
        COMPLETIONS, json={"prompt": "x", "max_tokens": 1}, headers={"x-request-id": "mine-2"}
    )
    assert reply.json()["id"] == "cmpl-mine-2"


def test_tokens_there_and_back(server: Running) -> None:
    text = "def add(first):\n    é\0"
    reply = server.http.post("/tokenize", json={"prompt": text, "return_token_strs": True}).json()
    assert reply["count"] == len(reply["tokens"]) == len(reply["token_strs"])
    assert reply["max_model_len"] == 512
    back = server.http.post("/detokenize", json={"tokens": reply["tokens"]}).json()
    assert back == {"prompt": text}
    chat = server.http.post("/tokenize", json={"messages": MESSAGES}).json()
    plain = server.http.post("/tokenize", json={"prompt": "[user]hi\n[assistant]"}).json()
    assert chat["tokens"] == plain["tokens"]
    assert server.http.post("/tokenize", json={"prompt": ""}).json()["tokens"] == []
    refused(server, 400, "/tokenize", {})
    refused(server, 400, "/tokenize", {"prompt": "x", "messages": MESSAGES})
    error = refused(server, 400, "/detokenize", {"tokens": [10**6]})
    assert error["param"] == "tokens"
    assert error["message"].startswith("tokens: token ids must be integers from 0 to 319")
    assert server.http.post("/detokenize", json={"tokens": []}).json() == {"prompt": ""}


def test_nothing_of_all_this_disturbed_the_engine(server: Running) -> None:
    assert server.http.get("/health").json() == {"status": "ready", "restarts": 0}
    bad = [line for line in server.lines() if line.get("status", 200) >= 500 or "traceback" in line]
    assert not bad


def test_what_is_quoted_of_a_request_is_not_long(server: Running) -> None:
    body = {"prompt": "x", "attention": "x" * 16_000}
    reply = server.http.post("/v1/completions", json=body)
    message = reply.json()["error"]["message"]
    assert reply.status_code == 400 and len(message) < 2100
    assert message.startswith("attention method 'xxx") and message.endswith("mosa")
    reply = server.http.get("/" + "y" * 9000)
    line = server.wait_for("request", id=reply.headers["x-request-id"])
    assert len(line["path"]) == 500
