"""Tools and reasoning, with the official client and real servers: random models, held to a call."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest

from ..engine.tiny import write_tiny
from .chat_templates import FAMILIES
from .conftest import SMALL, TEMPLATE
from .running import Running, streamed

WEATHER = {
    "type": "object",
    "properties": {"city": {"enum": ["Zürich", "Oslo"]}, "days": {"type": "integer", "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
CLOCK = {"type": "object", "properties": {"utc": {"type": "boolean"}}, "required": ["utc"]}
CLOCK["additionalProperties"] = False


def tool(name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS: list[Any] = [tool("weather", WEATHER), tool("clock", CLOCK)]
SCHEMAS = {"weather": WEATHER, "clock": CLOCK}
CHAT: list[Any] = [{"role": "user", "content": "hi"}]
FORMATS = {"hermes": "qwen2.5", "llama3_json": "llama3.1", "mistral": "mistral"}


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint with room for the text of tools, byte by byte."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    write_tiny(folder, "llama", tokenizer=True, max_position_embeddings=8192)
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder


def run(long: Path, folder: Path, template: str, *options: str) -> Running:
    path = folder / "template.jinja"
    path.write_text(template)
    return Running(folder, long, *SMALL, "--chat-template", str(path), *options)


@pytest.fixture(scope="module", params=FORMATS)
def calling(
    request: Any, long: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    template = FAMILIES[FORMATS[request.param]]
    source = template if isinstance(template, str) else template["default"]
    server = run(long, tmp_path_factory.mktemp("tools"), source)
    server.wait_ready()
    yield server
    assert server.stop() == 0


def client_of(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def joined(stream: Any) -> dict[int, dict[str, Any]]:
    """Choices put together from a stream, as clients do; the order of things is checked."""
    found: dict[int, dict[str, Any]] = {}
    for chunk in stream:
        for choice in chunk.choices:
            if choice.index not in found:
                assert choice.delta.role == "assistant"
                found[choice.index] = {"content": "", "calls": [], "finish": None}
            mine = found[choice.index]
            assert mine["finish"] is None
            mine["content"] += choice.delta.content or ""
            for delta in choice.delta.tool_calls or ():
                if delta.index == len(mine["calls"]):  # id, type and name come first, at once
                    assert delta.id and delta.type == "function" and delta.function.name
                    mine["calls"].append({"name": delta.function.name, "arguments": ""})
                else:
                    assert delta.index == len(mine["calls"]) - 1
                    assert delta.id is None and delta.function.name is None
                mine["calls"][-1]["arguments"] += delta.function.arguments
            mine["finish"] = choice.finish_reason
    return found


def calls_of(message: Any) -> list[dict[str, Any]]:
    return [
        {"name": call.function.name, "arguments": call.function.arguments}
        for call in message.tool_calls or ()
    ]


@pytest.mark.parametrize("many", [True, False])
def test_required_calls_are_valid_and_stream_as_they_are(
    calling: Running, many: bool, request: pytest.FixtureRequest
) -> None:
    options: Any = {"model": "tiny", "messages": CHAT, "tools": TOOLS, "tool_choice": "required"}
    options |= {"n": 4, "seed": 5, "max_tokens": 3000, "parallel_tool_calls": many}
    with client_of(calling) as client:
        reply = client.chat.completions.create(**options)
        stream = joined(client.chat.completions.create(**options, stream=True))
    assert len(reply.choices) == len(stream) == 4
    counts = set()
    for choice in reply.choices:
        calls = calls_of(choice.message)
        assert choice.finish_reason == "tool_calls" and choice.message.content is None
        assert len({call.id for call in choice.message.tool_calls or ()}) == len(calls) >= 1
        for call in calls:
            jsonschema.validate(json.loads(call["arguments"]), SCHEMAS[call["name"]])
        counts.add(len(calls))
        mine = stream[choice.index]
        assert mine == {"content": "", "calls": calls, "finish": "tool_calls"}
    # Llama 3.1's template does not take back several calls in one message.
    several = many and request.node.callspec.params["calling"] != "llama3_json"
    assert max(counts) > 1 if several else counts == {1}


def test_the_tool_whose_schema_cannot_be_kept_is_named(calling: Running) -> None:
    bad = tool("tags", {"type": "object", "properties": {"x": {"uniqueItems": True}}})
    body = {"messages": CHAT, "tools": [TOOLS[0], bad], "max_tokens": 9}
    for more in ({"tool_choice": "required"}, {"response_format": {"type": "json_object"}}):
        reply = calling.http.post("/v1/chat/completions", json={**body, **more})
        error = reply.json()["error"]
        assert (reply.status_code, error["param"]) == (400, "tools"), error
        assert error["message"].startswith("tools: the parameters of 'tags' cannot be used: ")
        assert "uniqueItems" in error["message"]


OSLO = {"type": "object", "properties": {"city": {"const": "Oslo"}}, "required": ["city"]}
OSLO["additionalProperties"] = False


@pytest.mark.parametrize(
    ("more", "arguments", "finish"),
    [
        ({"stop": ["Os"]}, '{"city":"', "stop"),
        ({"stop": ["lo"], "include": True}, '{"city":"Oslo', "stop"),
        ({"stop": ["}"], "include": True}, '{"city":"Oslo"}', "tool_calls"),
        ({"cut": "Os"}, '{"city":"Os', "length"),
        ({}, '{"city":"Oslo"}', "tool_calls"),
    ],
    ids=["stop", "stop included", "stop behind the arguments", "length", "whole"],
)
def test_an_answer_that_ends_within_a_call(
    calling: Running, more: dict[str, Any], arguments: str, finish: str
) -> None:
    tools = [tool("f", OSLO)]
    options: Any = {"model": "tiny", "messages": CHAT, "tools": tools, "tool_choice": "required"}
    options |= {"seed": 5, "max_tokens": 300, "parallel_tool_calls": False}
    options["extra_body"] = {"include_stop_str_in_output": more.get("include", False)}
    with client_of(calling) as client:
        if "cut" in more:  # as many tokens as the model needs to come to this text
            until = client.chat.completions.create(**options, stop=more["cut"]).usage
            assert until is not None
            options["max_tokens"] = until.completion_tokens
        options["stop"] = more.get("stop")
        reply = client.chat.completions.create(**options)
        stream = joined(client.chat.completions.create(**options, stream=True))
        # Whatever there is of the call, the client may send it back.
        result: Any = {"role": "tool", "content": "1"}
        said: Any = reply.choices[0].message.to_dict()
        result["tool_call_id"] = said["tool_calls"][0]["id"]
        history: Any = [*CHAT, said, result]
        assert client.chat.completions.create(model="tiny", messages=history, max_tokens=1).choices
    (choice,) = reply.choices
    (call,) = calls_of(choice.message)
    assert choice.finish_reason == finish and call["name"] == "f"
    assert "".join(call["arguments"].split()) == arguments  # the model likes white space
    assert stream[0] == {"content": choice.message.content or "", "calls": [call], "finish": finish}
    if more.get("stop"):
        assert choice.stop_reason == more["stop"][0]  # type: ignore[attr-defined]


def test_a_named_tool_is_called_once(calling: Running) -> None:
    choice = {"type": "function", "function": {"name": "clock"}}
    with client_of(calling) as client:
        for seed in range(3):
            reply = client.chat.completions.create(
                model="tiny", messages=CHAT, tools=TOOLS, tool_choice=choice, seed=seed
            )  # type: ignore[call-overload]
            (call,) = calls_of(reply.choices[0].message)
            assert call["name"] == "clock" and reply.choices[0].finish_reason == "tool_calls"
            jsonschema.validate(json.loads(call["arguments"]), CLOCK)


def test_auto_with_a_response_format_is_either(calling: Running) -> None:
    schema = {"name": "x", "schema": {"enum": ["yes", "no"]}}
    form = {"type": "json_schema", "json_schema": schema}
    kinds = set()
    for seed in range(10):
        body = {"messages": CHAT, "tools": TOOLS, "response_format": form, "seed": seed}
        body |= {"max_tokens": 3000, "parallel_tool_calls": False}
        reply = calling.http.post("/v1/chat/completions", json=body)
        assert reply.status_code == 200, reply.text
        choice = reply.json()["choices"][0]
        if "tool_calls" in choice["message"]:
            assert choice["finish_reason"] == "tool_calls"
            kinds.add("call")
        else:
            assert json.loads(choice["message"]["content"]) in ("yes", "no")
            kinds.add("form")
    assert "call" in kinds or "form" in kinds


def test_the_template_sees_tools_and_earlier_calls(calling: Running) -> None:
    call = {"name": "clock", "arguments": '{"utc": true}'}
    asked = {"id": "abcdefghi", "type": "function", "function": call}
    messages = [*CHAT, {"role": "assistant", "content": None, "tool_calls": [asked]}]
    messages.append({"role": "tool", "tool_call_id": "abcdefghi", "content": "12:30"})
    options: Any = {"messages": messages, "max_tokens": 1}

    def prompt_of(**more: Any) -> str:
        body = {**options, "return_token_ids": True, **more}
        reply = calling.http.post("/v1/chat/completions", json=body)
        assert reply.status_code == 200, reply.text
        ids = reply.json()["prompt_token_ids"]
        text: str = calling.http.post("/detokenize", json={"tokens": ids}).json()["prompt"]
        return text

    shown = prompt_of(tools=TOOLS)
    assert '"utc": true' in shown and "12:30" in shown and "Oslo" in shown.replace("\\u", "")
    assert "Oslo" not in prompt_of(tools=TOOLS, tool_choice="none")
    assert "Oslo" not in prompt_of()


def test_a_reply_and_chunks_are_as_described(calling: Running) -> None:
    document = calling.http.get("/openapi.json").json()
    body = {"messages": CHAT, "tools": TOOLS, "tool_choice": "required", "logprobs": True}
    body |= {"return_token_ids": True, "parallel_tool_calls": False, "seed": 1, "max_tokens": 900}

    def shape(name: str) -> Any:
        reference = f"#/components/schemas/{name}"
        return {"$ref": reference, "components": document["components"]}

    jsonschema.validate(body, shape("ChatRequest"))
    reply = calling.http.post("/v1/chat/completions", json=body).json()
    jsonschema.validate(reply, shape("ChatCompletion"))
    chunks = streamed(calling, "/v1/chat/completions", body)
    tokens: list[int] = []
    logprobs = 0
    for chunk in chunks:
        jsonschema.validate(chunk, shape("ChatChunk"))
        tokens += chunk["choices"][0].get("token_ids") or []
        logprobs += len((chunk["choices"][0].get("logprobs") or {"content": []})["content"])
    assert tokens == reply["choices"][0]["token_ids"] and logprobs == len(tokens)
    assert len(tokens) == reply["usage"]["completion_tokens"]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": "sometimes", "tools": TOOLS}, "tool_choice"),
    ({"tool_choice": tool("x", {}), "tools": TOOLS}, "tool_choice"),
    ({"tool_choice": {"type": "custom"}, "tools": TOOLS}, "tool_choice"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"tools": [tool("", {})]}, "tools[0].function.name"),
    ({"tools": [tool("f", {}), tool("f", {})]}, "tools[1].function.name"),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": 3}}]},
     "tools[0].function.parameters"),
    ({"tools": [tool(f"f{i}", {}) for i in range(129)]}, "tools"),
    ({"tools": [tool("f", {"type": "object", "properties": {"a": {"type": "no"}}})],
      "tool_choice": "required"}, "tools"),
    ({"tools": TOOLS, "tool_choice": "required", "response_format": {"type": "json_object"}},
     "tool_choice"),
    ({"messages": [*CHAT, {"role": "tool", "tool_call_id": "x", "content": "1"}]},
     "messages[1].tool_call_id"),
    ({"messages": [*CHAT, {"role": "tool", "content": "1"}]}, "messages[1].tool_call_id"),
    ({"messages": [*CHAT, {"role": "assistant", "tool_calls": [
        {"id": "x", "type": "function", "function": {"name": "f", "arguments": 3}}]}]},
     "messages[1].tool_calls[0].function.arguments"),
    ({"messages": [*CHAT, {"role": "assistant", "tool_calls": [
        {"type": "function", "function": {"name": "f", "arguments": "{}"}}]}]},
     "messages[1].tool_calls[0].id"),
]  # fmt: skip


@pytest.mark.parametrize(("more", "param"), REFUSED, ids=range(len(REFUSED)))
def test_refusals(calling: Running, more: dict[str, Any], param: str) -> None:
    for stream in (False, True):
        body = {"messages": CHAT, "max_tokens": 1, "stream": stream, **more}
        reply = calling.http.post("/v1/chat/completions", json=body)
        assert reply.status_code == 400, reply.text
        error = reply.json()["error"]
        assert error["message"].startswith(error["param"][:5]) or param == "tool_choice"
        assert error["param"] in (param, param.partition(".function.arguments")[0]), error


def test_a_template_without_a_known_format_refuses_tools(server: Running) -> None:
    body = {"messages": CHAT, "tools": TOOLS, "max_tokens": 1}
    reply = server.http.post("/v1/chat/completions", json=body)
    assert reply.status_code == 400 and "--tool-call-parser" in reply.text


_OVER = "{% if enable_thinking is false %}</think>{% endif %}"
THINKING = TEMPLATE.replace("[assistant]{% endif %}", f"[assistant]<think>{_OVER}{{% endif %}}")


@pytest.fixture(scope="module")
def thinking(long: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    tools = "{% if tools %}{{ tools | tojson }}{% endif %}"
    options = ("--tool-call-parser", "hermes")
    server = run(long, tmp_path_factory.mktemp("think"), tools + THINKING, *options)
    server.wait_ready()
    yield server
    assert server.stop() == 0


def test_reasoning_comes_first_and_is_counted(thinking: Running) -> None:
    options: Any = {"model": "tiny", "messages": CHAT, "seed": 2, "temperature": 1.5}
    with client_of(thinking) as client:
        more: Any = {"max_tokens": 60}  # a random model never stops to think
        reply = client.chat.completions.create(**options, **more)
        message: Any = reply.choices[0].message
        assert message.reasoning_content == message.reasoning and message.content is None
        assert reply.usage is not None and reply.usage.completion_tokens_details is not None
        assert reply.usage.completion_tokens_details.reasoning_tokens == 60
        texts = {"reasoning": "", "content": ""}
        for chunk in client.chat.completions.create(**options, **more, stream=True):
            delta: Any = chunk.choices[0].delta
            texts["reasoning"] += getattr(delta, "reasoning_content", None) or ""
            texts["content"] += delta.content or ""
        assert texts == {"reasoning": message.reasoning, "content": ""}
        hidden = client.chat.completions.create(
            **options, **more, extra_body={"include_reasoning": False}
        )
        assert not hasattr(hidden.choices[0].message, "reasoning_content")


def test_a_thought_in_parts_goes_on_as_one(thinking: Running) -> None:
    asked: dict[str, Any] = {"add_generation_prompt": False, "continue_final_message": True}
    for content in ("<think>a", [{"type": "text", "text": "<think>a"}]):
        last = {"role": "assistant", "content": content}
        body = {"messages": [*CHAT, last], "max_tokens": 5, "ignore_eos": True, **asked}
        reply = thinking.http.post("/v1/chat/completions", json=body).json()
        message = reply["choices"][0]["message"]
        assert message["reasoning_content"] and message["content"] is None


STARTED = [*CHAT, {"role": "assistant", "content": "<think>hm</think>"}]
GOES_ON = {"messages": STARTED, "continue_final_message": True, "add_generation_prompt": False}
NO_THOUGHT = {"messages": CHAT, "chat_template_kwargs": {"enable_thinking": False}}


@pytest.mark.parametrize("prompt", [GOES_ON, NO_THOUGHT], ids=["continued", "switched off"])
def test_a_form_and_a_call_begin_behind_the_reasoning(thinking: Running, prompt: Any) -> None:
    """The prompt has the thought already, or an empty one: no other can begin."""
    schema = {"enum": ["yes"]}
    forms: list[dict[str, Any]] = [
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": schema},
            }
        },
        {"structured_outputs": {"choice": ["<think>", '"yes"']}, "logit_bias": {0: -100}},
        {"tools": TOOLS, "tool_choice": "required"},
    ]
    for more in forms:
        for seed in range(3):
            body = {**prompt, "seed": seed, "max_tokens": 900, **more}
            reply = thinking.http.post("/v1/chat/completions", json=body).json()
            message = reply["choices"][0]["message"]
            assert "reasoning" not in message
            if "tools" in more:
                for call in message["tool_calls"]:
                    arguments = json.loads(call["function"]["arguments"])
                    jsonschema.validate(arguments, SCHEMAS[call["function"]["name"]])
            else:
                assert message["content"] in ('"yes"', "<think>")


def test_a_forced_call_that_is_cut_off_leaves_no_markup(thinking: Running) -> None:
    body = {**NO_THOUGHT, "tools": TOOLS, "tool_choice": "required", "seed": 1}
    for max_tokens in (1, 5, 20):
        reply = thinking.http.post(
            "/v1/chat/completions", json={**body, "max_tokens": max_tokens}
        ).json()
        (choice,) = reply["choices"]
        assert not choice["message"]["content"] and choice["finish_reason"] == "length"
        told = streamed(thinking, "/v1/chat/completions", {**body, "max_tokens": max_tokens})
        assert not any(each["choices"][0]["delta"].get("content") for each in told)
