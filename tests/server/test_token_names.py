"""`return_tokens_as_token_ids`: tokens called by their numbers, which JSON can always carry."""

from __future__ import annotations

from typing import Any

from .running import Running, completion, streamed

FIELDS: dict[str, Any] = {"max_tokens": 5, "temperature": 0, "return_token_ids": True}
MESSAGES = [{"role": "user", "content": "hi"}]


def named(ids: list[int]) -> list[str]:
    return [f"token_id:{each}" for each in ids]


def test_in_completions(server: Running) -> None:
    body = {"prompt": "def add", "echo": True, "logprobs": 2, **FIELDS}
    plain = completion(server, **body)["choices"][0]
    choice = completion(server, **body, return_tokens_as_token_ids=True)["choices"][0]
    ids = choice["prompt_token_ids"] + choice["token_ids"]
    found = choice["logprobs"]
    assert found["tokens"] == named(ids) and choice["text"] == plain["text"]
    for name in ("text_offset", "token_logprobs"):
        assert found[name] == plain["logprobs"][name]
    for top, own in zip(found["top_logprobs"][1:], found["tokens"][1:], strict=True):
        assert own in top and all(each.startswith("token_id:") for each in top)
    chunks = streamed(server, "/v1/completions", {**body, "return_tokens_as_token_ids": True})
    tokens = [t for chunk in chunks for t in chunk["choices"][0]["logprobs"]["tokens"]]
    assert tokens == found["tokens"]


def test_an_echo_shows_special_tokens_where_the_answer_does(server: Running) -> None:
    ids = server.http.post("/tokenize", json={"prompt": "<s>a</s>b"}).json()["tokens"]
    body = {"echo": True, "logprobs": 0, "max_tokens": 0}
    for skips, text in ((True, "ab"), (False, "<s>a</s>b")):
        choice = completion(server, ids, **body, skip_special_tokens=skips)["choices"][0]
        assert choice["text"] == text
        starts = choice["logprobs"]["text_offset"]
        ends = [*starts[1:], len(text)]
        shown = [text[start:end] for start, end in zip(starts, ends, strict=True)]
        tokens = choice["logprobs"]["tokens"]
        assert shown == ["" if skips and t[0] == "<" else t for t in tokens]


def test_in_chats(server: Running) -> None:
    path = "/v1/chat/completions"
    body = {"messages": MESSAGES, "logprobs": True, "top_logprobs": 2, **FIELDS}
    plain = server.http.post(path, json=body).json()["choices"][0]
    body["return_tokens_as_token_ids"] = True
    choice = server.http.post(path, json=body).json()["choices"][0]
    found = choice["logprobs"]["content"]
    assert [each["token"] for each in found] == named(choice["token_ids"])
    for each, other in zip(found, plain["logprobs"]["content"], strict=True):
        assert (each["logprob"], each["bytes"]) == (other["logprob"], other["bytes"])
        assert each["top_logprobs"][0]["token"] == each["token"]
    chunks = streamed(server, path, body)
    entries = [
        e for c in chunks for e in (c["choices"][0]["logprobs"] or {"content": []})["content"]
    ]
    assert entries == found
