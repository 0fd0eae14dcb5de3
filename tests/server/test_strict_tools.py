"""Strict tools under `tool_choice: auto`: a model that decides to call keeps to the schema.

The model is random. A bias makes it open a call, by a token that it would hardly choose itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import jsonschema
import openai
import pydantic
import pytest
import tokenizers

from ..engine.tiny import write_tiny
from .chat_templates import FAMILIES
from .conftest import SMALL
from .running import Running

CHAT: list[Any] = [{"role": "user", "content": "hi"}]
WEATHER = {
    "type": "object",
    "properties": {"city": {"enum": ["Zürich", "Oslo"]}, "days": {"type": "integer", "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
MARKERS = ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<think>", "</think>"]
FORMATS = {"hermes": "qwen2.5", "mistral": "mistral"}


def tool(name: str, parameters: Any, strict: bool | None = None) -> dict[str, Any]:
    function = {"name": name, "parameters": parameters} | ({"strict": strict} if strict else {})
    return {"type": "function", "function": function}


TOOLS: list[Any] = [tool("weather", WEATHER, True), tool("loose", {"type": "object"})]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny one whose vocabulary has the markers of calls and of reasoning."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    write_tiny(folder, "llama", tokenizer=True, max_position_embeddings=8192, vocab_size=400)
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.add_special_tokens(MARKERS)
    backend.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder


def run(checkpoint: Path, folder: Path, template: str, *options: str) -> Running:
    path = folder / "template.jinja"
    path.write_text(template)
    server = Running(folder, checkpoint, *SMALL, "--chat-template", str(path), *options)
    server.wait_ready()
    return server


@pytest.fixture(scope="module", params=FORMATS)
def calling(
    request: Any, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Running, str]]:
    """(server, the marker of its calls)."""
    template = FAMILIES[FORMATS[request.param]]
    source = template if isinstance(template, str) else template["default"]
    server = run(checkpoint, tmp_path_factory.mktemp("tools"), source)
    yield server, {"hermes": "<tool_call>", "mistral": "[TOOL_CALLS]"}[request.param]
    assert server.pages()["used"] == 0
    assert server.stop() == 0


def token_of(server: Running, text: str) -> int:
    reply = server.http.post("/tokenize", json={"prompt": text, "add_special_tokens": False})
    (token,) = reply.json()["tokens"]
    return int(token)


def client_of(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_a_call_that_the_model_makes_keeps_to_its_schema(calling: tuple[Running, str]) -> None:
    server, marker = calling
    bias = {str(token_of(server, marker)): 100}
    names = set()
    with client_of(server) as client:
        for seed in range(8):
            options: Any = {
                "model": "tiny", "messages": CHAT, "tools": TOOLS, "seed": seed,
                "logit_bias": bias, "max_tokens": 3000, "parallel_tool_calls": False,
            }  # fmt: skip
            choice = client.chat.completions.create(**options).choices[0]
            (call,) = choice.message.tool_calls or ()
            arguments = json.loads(call.function.arguments)  # type: ignore[union-attr]
            names.add(call.function.name)  # type: ignore[union-attr]
            if call.function.name == "weather":  # type: ignore[union-attr]
                jsonschema.validate(arguments, WEATHER)
            assert isinstance(arguments, dict)
            streamed = ""
            for chunk in client.chat.completions.create(**options, stream=True):
                for delta in chunk.choices[0].delta.tool_calls or ():
                    streamed += delta.function.arguments or ""  # type: ignore[union-attr]
            assert streamed == call.function.arguments  # type: ignore[union-attr]
    assert names == {"weather", "loose"}


class Trip(pydantic.BaseModel):
    """A journey."""

    class Leg(pydantic.BaseModel):
        """A part of it."""

        to: Literal["Oslo", "Bern"]
        hours: Literal[1, 2] | None

    leg: Leg
    comfort: Literal["low", "high"]


def test_the_client_parses_the_arguments_of_its_own_classes(calling: tuple[Running, str]) -> None:
    """It sends every such tool as a strict one."""
    server, marker = calling
    bias = {str(token_of(server, marker)): 100}
    with client_of(server) as client:
        reply = client.chat.completions.parse(
            model="tiny", messages=CHAT, tools=[openai.pydantic_function_tool(Trip)], seed=1,
            logit_bias=bias, max_tokens=900, parallel_tool_calls=False,
        )  # fmt: skip
    (call,) = reply.choices[0].message.tool_calls or ()
    assert isinstance(call.function.parsed_arguments, Trip)


def test_text_stays_as_it_was(calling: tuple[Running, str]) -> None:
    """Where the model does not call, the same seed gives the same text as without any tool held."""
    server, _ = calling
    loose = [tool("weather", WEATHER), TOOLS[1]]
    never = {str(token_of(server, each)): -100 for each in MARKERS}
    for seed in range(3):
        body = {"messages": CHAT, "seed": seed, "max_tokens": 40, "logit_bias": never}
        contents = [
            server.http.post("/v1/chat/completions", json={**body, "tools": tools}).json()
            for tools in (TOOLS, loose)
        ]
        texts = [each["choices"][0]["message"]["content"] for each in contents]
        # A structure knows only what is UTF-8; a random model writes other bytes as well.
        same = texts[0] == texts[1] or "\ufffd" in texts[1]
        assert same and "\ufffd" not in texts[0][:-1], texts


def test_a_strict_tool_that_cannot_be_compiled_is_refused(calling: tuple[Running, str]) -> None:
    server, _ = calling
    wrong = {"type": "object", "properties": {"a": {"type": "no"}}}
    for strict, status in ((True, 400), (False, 200)):
        body = {"messages": CHAT, "tools": [tool("f", wrong, strict)], "max_tokens": 1}
        reply = server.http.post("/v1/chat/completions", json=body)
        assert reply.status_code == status, reply.text
    body = {"messages": CHAT, "tools": [tool("f", wrong, True)], "max_tokens": 1}
    error = server.http.post("/v1/chat/completions", json=body).json()["error"]
    assert error["param"] == "tools" and error["message"].startswith("tools: ")


def test_a_forced_tool_that_cannot_be_compiled_is_refused(calling: tuple[Running, str]) -> None:
    """At its root, where a schema is made one of an object unless it says otherwise, and below."""
    server, _ = calling
    inside = {"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}}
    bad = [({"type": "foo"}, "parameters of 'f' must be a schema of an object, not of type 'foo'")]
    bad += [({"type": "array"}, "not of type 'array'"), (inside, "unclosed group")]
    named = {"type": "function", "function": {"name": "f"}}
    for schema, words in bad:
        for more in ({"tool_choice": "required"}, {"tool_choice": named}, {"strict": True}):
            tools = [tool("g", None), tool("f", schema, bool(more.pop("strict", False)))]
            body = {"messages": CHAT, "tools": tools, "max_tokens": 1, **more}
            reply = server.http.post("/v1/chat/completions", json=body)
            assert reply.status_code == 400, reply.text
            error = reply.json()["error"]
            assert error["param"] == "tools" and words in error["message"], error


def test_calls_behind_reasoning_are_held_too(
    checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Reasoning may come first; here it does not, for a random model would never end it."""
    template = FAMILIES["qwen2.5"]
    assert isinstance(template, str)
    options = ("--reasoning-parser", "think")
    server = run(checkpoint, tmp_path_factory.mktemp("think"), template, *options)
    try:
        marker, again = (token_of(server, each) for each in ("<tool_call>", "<think>"))
        for seed in range(4):
            reply = server.http.post("/v1/chat/completions", json={
                "messages": CHAT, "tools": TOOLS[:1], "seed": seed, "max_tokens": 3000,
                "logit_bias": {str(marker): 100, str(again): -100}, "parallel_tool_calls": False,
            })  # fmt: skip
            assert reply.status_code == 200, reply.text
            (call,) = reply.json()["choices"][0]["message"]["tool_calls"]
            jsonschema.validate(json.loads(call["function"]["arguments"]), WEATHER)
    finally:
        assert server.stop() == 0
