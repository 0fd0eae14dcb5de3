"""/v1/responses with the official client: text, forms, calls, streams, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import jsonschema
import openai
import pydantic
import pytest

from saccade.server.items import ItemWriter
from saccade.server.protocol.chat import ChatRequest
from saccade.server.protocol.errors import ApiError
from saccade.server.protocol.items import place, read_input
from saccade.server.protocol.responses import ResponsesRequest
from saccade.server.reading import News
from saccade.server.routes.responses import in_own_words
from saccade.server.tools import ToolDelta

from ..engine.tiny import write_tiny
from .chat_templates import FAMILIES
from .conftest import SMALL
from .running import Running

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Bern"]}, "days": {"type": "integer", "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOL: Any = {"type": "function", "name": "weather", "parameters": PARAMETERS, "strict": True}
ORDER = {
    "message": [
        *("output_item.added", "content_part.added", "output_text.delta"),
        *("output_text.done", "content_part.done", "output_item.done"),
    ],
    "function_call": [
        *("output_item.added", "function_call_arguments.delta"),
        *("function_call_arguments.done", "output_item.done"),
    ],
}


@pytest.fixture(scope="module")
def calling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("model")
    write_tiny(folder / "tiny", "llama", tokenizer=True, max_position_embeddings=4096)
    template = FAMILIES["qwen2.5"]
    assert isinstance(template, str)
    (folder / "tiny" / "chat_template.jinja").write_text(template)
    running = Running(folder, folder / "tiny", *SMALL)
    running.wait_ready()
    yield running
    assert running.pages()["used"] == 0
    assert running.stop() == 0


@pytest.fixture(scope="module")
def client(calling: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{calling.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def test_a_response_is_the_chat_under_other_names(client: openai.OpenAI) -> None:
    reply = client.responses.create(
        model="tiny", input="hi", instructions="Be brief.", max_output_tokens=12, temperature=0,
        metadata={"a": "b"},
    )  # fmt: skip
    chat = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}],
        max_tokens=12,
        temperature=0,
    )
    assert reply.output_text == chat.choices[0].message.content
    assert reply.id.startswith("resp_") and reply.object == "response" and reply.model == "tiny"
    assert reply.status == "incomplete" and reply.incomplete_details is not None
    assert reply.incomplete_details.reason == "max_output_tokens"
    assert reply.metadata == {"a": "b"} and reply.instructions == "Be brief."
    assert reply.usage is not None and chat.usage is not None
    assert reply.usage.input_tokens == chat.usage.prompt_tokens
    assert reply.usage.output_tokens == 12 == reply.usage.total_tokens - reply.usage.input_tokens
    parts: list[Any] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
    ]
    same = client.responses.create(model="tiny", input=parts, max_output_tokens=12, temperature=0)
    assert same.output_text == reply.output_text


class Answer(pydantic.BaseModel):
    ok: bool
    kind: Literal["a", "b"]


def test_parsed_output(client: openai.OpenAI) -> None:
    reply = client.responses.parse(
        model="tiny", input="hi", text_format=Answer, max_output_tokens=900
    )
    assert reply.status == "completed"
    assert reply.output_parsed is not None and reply.output_parsed.kind in ("a", "b")
    text: Any = {"format": {"type": "json_object"}, "verbosity": "low"}
    plain = client.responses.create(model="tiny", input="hi", text=text, max_output_tokens=5)
    assert plain.text is not None and plain.text.verbosity == "low"
    assert plain.output_text.lstrip().startswith("{")


def test_calls_and_their_outputs(client: openai.OpenAI) -> None:
    first = client.responses.create(
        model="tiny", input="hi", tools=[TOOL], tool_choice="required", parallel_tool_calls=False
    )
    (call,) = first.output
    assert call.type == "function_call" and call.name == "weather" and first.status == "completed"
    jsonschema.validate(json.loads(call.arguments), PARAMETERS)
    history: list[Any] = [{"role": "user", "content": "hi"}, call]
    history.append({"type": "function_call_output", "call_id": call.call_id, "output": "rain"})
    second = client.responses.create(
        model="tiny", input=history, tools=[TOOL], tool_choice="none", max_output_tokens=4
    )
    assert second.output[0].type == "message"
    named = client.responses.create(
        model="tiny", input="hi", tools=[TOOL], tool_choice={"type": "function", "name": "weather"}
    )
    assert [item.type for item in named.output] == ["function_call"]
    assert isinstance(named.tools[0].strict, bool)  # type: ignore[union-attr]


@pytest.mark.parametrize("many", [None, False, True])
def test_streamed_events_come_in_order(
    client: openai.OpenAI, calling: Running, many: bool | None
) -> None:
    options: Any = {"model": "tiny", "input": "hi", "max_output_tokens": 20}
    options["extra_body"] = {"seed": 4}
    if many is not None:
        options |= {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": many}
        options |= {"max_output_tokens": 3000}
    whole = client.responses.create(**options)
    events = list(client.responses.create(**options, stream=True))
    types = [event.type.removeprefix("response.") for event in events]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert types[:2] == ["created", "in_progress"]
    assert types[-1] == ("incomplete" if many is None else "completed")
    expected = []
    for item in whole.output:
        expected += ORDER[item.type]
    thinned = [t for i, t in enumerate(types[2:-1]) if not t.endswith("delta") or types[i + 1] != t]
    assert thinned == expected
    last: Any = events[-1]
    assert strip(last.response.output) == strip(whole.output)
    assert last.response.usage.output_tokens == whole.usage.output_tokens  # type: ignore[union-attr]
    deltas: dict[int, str] = {}
    for event in events:
        if event.type in ("response.output_text.delta", "response.function_call_arguments.delta"):
            deltas[event.output_index] = deltas.get(event.output_index, "") + event.delta
    texts = [getattr(i, "arguments", None) or i.content[0].text for i in whole.output]  # type: ignore[union-attr]
    assert [deltas[index] for index in range(len(texts))] == texts
    document = calling.http.get("/openapi.json").json()
    body: Any = {**options, **options.pop("extra_body"), "stream": True}
    with calling.http.stream("POST", "/v1/responses", json=body) as reply:
        lines = [line for line in reply.iter_lines() if line.startswith("data: ")]
    assert len(lines) == len(events)
    shape = {"$ref": "#/components/schemas/ResponseEvent", "components": document["components"]}
    for line in lines:
        jsonschema.validate(json.loads(line.removeprefix("data: ")), shape)


def strip(items: Any) -> list[dict[str, Any]]:
    """Items without the names that differ from request to request."""
    return [item.model_dump(exclude={"id", "call_id"}) for item in items]


def test_the_streaming_helper_of_the_client(client: openai.OpenAI) -> None:
    with client.responses.stream(
        model="tiny", input="hi", text_format=Answer, max_output_tokens=900
    ) as stream:
        for _ in stream:
            pass
        final = stream.get_final_response()
    assert final.output_parsed is not None and final.output_parsed.kind in ("a", "b")


def test_log_probabilities_stand_with_the_text(client: openai.OpenAI) -> None:
    prompt = "é🎉 hi"
    options: Any = {"model": "tiny", "input": prompt, "max_output_tokens": 40, "temperature": 0}
    include: Any = ["message.output_text.logprobs"]
    reply = client.responses.create(**options, top_logprobs=2, include=include)
    part: Any = reply.output[0].content[0]  # type: ignore[union-attr]
    chat = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": prompt}], max_tokens=40, temperature=0,
        logprobs=True, top_logprobs=2,
    )  # fmt: skip
    expected: Any = chat.choices[0].logprobs and chat.choices[0].logprobs.content
    assert [each.model_dump() for each in part.logprobs] == [
        each.model_dump() for each in expected[: len(part.logprobs)]
    ]
    assert 0 <= len(expected) - len(part.logprobs) <= 1  # an end of sequence is no text
    assert len(part.logprobs) > 9 and all(len(each.top_logprobs) == 2 for each in part.logprobs)
    written = b"".join(bytes(each.bytes) for each in part.logprobs)
    assert written.decode(errors="replace") == part.text
    told, done = [], None
    for event in client.responses.create(**options, include=include, stream=True):
        if event.type == "response.output_text.delta":
            told += event.logprobs
        if event.type == "response.output_text.done":
            done = event.logprobs
    assert [each.token for each in told] == [each.token for each in part.logprobs]
    assert [each.token for each in done or ()] == [each.token for each in told]
    forced: Any = {"tools": [TOOL], "tool_choice": "required", "max_output_tokens": 900}
    called = client.responses.create(**options | forced, top_logprobs=1)
    assert {item.type for item in called.output} == {"function_call"}
    plain: Any = client.responses.create(**options)
    assert plain.output[0].content[0].logprobs == []


def test_a_strict_tool_that_cannot_be_is_refused(calling: Running) -> None:
    """That a call keeps to its schema: test_strict_tools.py."""
    body = {"input": "hi", "tools": [TOOL], "max_output_tokens": 900, "seed": 1}
    reply = calling.http.post("/v1/responses", json=body).json()
    assert [item["type"] for item in reply["output"]] == ["message"]
    wrong = {**TOOL, "parameters": {"type": "object", "properties": {"a": {"type": "no"}}}}
    refused = calling.http.post("/v1/responses", json={**body, "tools": [wrong]})
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "tools"


TEXT = {"role": "user", "content": "hi"}
THOUGHT = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "t"}]}
SAID = {"role": "assistant", "content": "b"}
CALL = {"type": "function_call", "call_id": "call00001", "name": "f", "arguments": "{}"}
ANSWER = {"type": "function_call_output", "call_id": "call00001", "output": "x"}
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"store": True}, "store", "keeps no responses"),
    ({"previous_response_id": "resp_1"}, "previous_response_id", "whole conversation"),
    ({"conversation": "c"}, "conversation", "keeps no conversations"),
    ({"background": True}, "background", "not supported"),
    ({"truncation": "auto"}, "truncation", "not supported"),
    ({"response_format": {"type": "json_object"}}, "response_format", "use text.format"),
    ({"structured_outputs": {"regex": "a"}}, "structured_outputs", "use text.format"),
    ({"guided_choice": ["a"]}, "guided_choice", "use text.format"),
    ({"stop": "x"}, "stop", "stop is not supported on this route"),
    ({"n": 2}, "n", "n is not supported on this route"),
    ({"modalities": ["audio"]}, "modalities", "modalities is not supported on this route"),
    ({"logits_processors": ["x"]}, "logits_processors", "not supported on this route"),
    ({"logit_bias": {"5": 1}}, "logit_bias", "not supported on this route"),
    ({"presence_penalty": 0.5}, "presence_penalty", "not supported on this route"),
    ({"frequency_penalty": -1}, "frequency_penalty", "not supported on this route"),
    ({"ignore_eos": True}, "ignore_eos", "not supported on this route"),
    ({"max_tokens": 5}, "max_tokens", "use max_output_tokens"),
    ({"messages": []}, "messages", "use input"),
    ({"reasoning_effort": "low"}, "reasoning_effort", "use reasoning.effort"),
    ({"logprobs": True}, "logprobs", "use top_logprobs"),
    ({"include": ["file_search_call.results"]}, "include", "not to be had"),
    ({"input": []}, "input", "at least one item"),
    ({"input": [{"type": "computer_call"}]}, "input[0].type", "must be message"),
    ({"input": [{"role": "tool", "content": "a"}]}, "input[0].role",
     "must be user, assistant, system or developer: got 'tool'"),
    ({"input": [{"role": "user"}]}, "input[0].content", "text"),
    ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]",
     "text only"),
    ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]},
     "input[0].call_id", "must be a text"),
    ({"input": [{"type": "function_call_output", "call_id": "x", "output": "1"}]},
     "input[0].call_id", "id of a call"),
    ({"instructions": "be", "input": [TEXT, THOUGHT, SAID, CALL, {**CALL, "call_id": ""}]},
     "input[4].call_id", "^input[4].call_id must be a text that is not empty"),
    ({"input": [TEXT, THOUGHT, {**ANSWER, "call_id": "None"}]}, "input[2].call_id", "id of a call"),
    ({"tools": [{"type": "web_search_preview"}]}, "tools[0].type", "no tools of its own"),
    ({"tools": [{"type": "function"}]}, "tools[0].name", "1 to 256"),
    ({"tool_choice": {"type": "function", "name": "x"}, "tools": [TOOL]},
     "tool_choice", "not among"),
    ({"tool_choice": {"type": "function", "function": {"name": "weather"}}, "tools": [TOOL]},
     "tool_choice", "{'type': 'function', 'name': ...}"),
    ({"tool_choice": {"type": "allowed_tools"}, "tools": [TOOL]},
     "tool_choice", "{'type': 'function', 'name': ...}"),
    ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema", "missing"),
    ({"text": {"format": {"type": "json_schema", "schema": {"type": "no"}}}}, "text.format", ""),
    ({"max_output_tokens": 0}, "max_output_tokens", "^max_output_tokens"),
    ({"max_output_tokens": 5000}, "input", "4096"),
    ({"temperature": -1}, "temperature", "from 0"),
    ({"model": "nobody"}, "model", "no model"),
]  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("more", "param", "words"), REFUSED, ids=range(len(REFUSED)))
def test_refusals(
    calling: Running, more: dict[str, Any], param: str, words: str, stream: bool
) -> None:
    body = {"model": "tiny", "input": "hi", "max_output_tokens": 1, "stream": stream, **more}
    reply = calling.http.post("/v1/responses", json=body)
    assert reply.status_code == (404 if "model" in more else 400), reply.text
    error = reply.json()["error"]
    assert error["param"] == param and words.lstrip("^") in error["message"], error
    assert not words.startswith("^") or error["message"].startswith(words[1:])


def test_places_in_messages_are_those_of_the_items() -> None:
    read = read_input([TEXT, THOUGHT, SAID, CALL, {**CALL, "call_id": "2"}, ANSWER, SAID], "sys")
    assert [each["role"] for each in read.messages] == (
        ["system", "user", "assistant", "tool", "assistant"]
    )
    places = {
        "messages": "messages",
        "messages[0].content": "instructions",
        "messages[1].content[3].text": "input[0].content[3].text",
        "messages[2]": "input[1]",
        "messages[2].reasoning_content": "input[1].summary",
        "messages[2].content[0]": "input[2].content[0]",
        "messages[2].tool_calls[0].function.name": "input[3].name",
        "messages[2].tool_calls[1]": "input[4]",
        "messages[2].tool_calls[1].id": "input[4].call_id",
        "messages[3].content[1]": "input[5].output[1]",
        "messages[3].tool_call_id": "input[5].call_id",
        "messages[4].role": "input[6].role",
        "tools[0].function.name": "tools[0].function.name",
    }
    assert {name: place(name, read.places) for name in places} == places
    assert place("messages[0].content", read_input("hi", None).places) == "input"


def test_a_call_that_was_cut_off_is_part_of_a_history(calling: Running) -> None:
    body = {"input": [TEXT, {**CALL, "arguments": '{"a'}, ANSWER], "max_output_tokens": 2}
    reply = calling.http.post("/v1/responses", json={"model": "tiny", **body})
    assert reply.status_code == 200, reply.text


def test_arguments_that_are_no_text_are_found_in_their_item(calling: Running) -> None:
    body = {"instructions": "be", "input": [TEXT, {**CALL, "arguments": 3}]}
    error = calling.http.post("/v1/responses", json=body).json()["error"]
    assert error["param"] == "input[1].arguments"


def test_errors_of_chats_are_told_in_the_words_of_this_route() -> None:
    def told(message: str, param: str) -> str:
        return in_own_words(ApiError(400, message, param)).info.message

    prose = "The chat template cannot render these messages: no."
    assert told(prose, "messages") == prose
    assert told("messages must be a list", "messages") == "input must be a list"
    assert told("messages[0].role: no role", "messages[0].role") == "input[0].role: no role"
    longer = "n x max_completion_tokens must be at most 5"
    assert told(longer, "max_completion_tokens") == "n x max_output_tokens must be at most 5"


def test_neutral_values_and_fields_that_nobody_knows_change_nothing(calling: Running) -> None:
    body = {"input": "hi", "max_output_tokens": 5, "temperature": 0}
    neutral = {"n": 1, "stop": [], "logit_bias": {}, "presence_penalty": 0, "logprobs": False}
    neutral |= {"frequency_penalty": 0.0, "repetition_penalty": 1.0, "max_tokens": None}
    neutral |= {"service_tier": "auto", "favourite_colour": "blue", "stream_options": None}
    known, more = (
        calling.http.post("/v1/responses", json={**body, **each}).json() for each in ({}, neutral)
    )
    assert more["output"][0]["content"] == known["output"][0]["content"]
    names = set(ChatRequest.__struct_fields__) - set(ResponsesRequest.__struct_fields__)
    served = {"stream_options", *ChatRequest.HIDDEN}
    assert names <= served, "a field of chats is passed over in silence"


def test_items_become_messages() -> None:
    items: list[Any] = [
        {"role": "user", "content": "a"},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "t"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "b"}]},
        {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
        {"type": "function_call", "call_id": "2", "name": "g", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": "x"},
        {"type": "function_call_output", "call_id": "2", "output": "y"},
        {"type": "function_call", "call_id": "3", "name": "f", "arguments": "{}"},
    ]
    found = read_input(items, "sys").messages
    assert [message["role"] for message in found] == (
        ["system", "user", "assistant", "tool", "tool", "assistant"]
    )
    assert found[2]["reasoning_content"] == "t" and found[2]["content"][0]["text"] == "b"
    assert [call["id"] for call in found[2]["tool_calls"]] == ["1", "2"]
    assert found[5]["tool_calls"][0]["id"] == "3" and found[5]["content"] is None


def test_items_of_every_kind_grow_and_end() -> None:
    writer = ItemWriter("x")
    news = [
        News("hm", ""),
        News(" so", "It"),
        News("", " is", [ToolDelta(0, "c0", "f"), ToolDelta(0, arguments='{"a"')]),
        News("", "", [ToolDelta(0, arguments=": 1}"), ToolDelta(1, "c1", "g", "{}")]),
        News("", "late"),
    ]
    events = [event.type.removeprefix("response.") for each in news for event in writer.write(each)]
    events += [event.type.removeprefix("response.") for event in writer.finish("incomplete")]
    kinds = [type(item).__name__ for item in writer.items]
    assert kinds == ["ReasoningItem", "MessageItem", *["FunctionCallItem"] * 2, "MessageItem"]
    reasoning, first, f, g, late = writer.items
    assert reasoning.content[0].text == "hm so" and first.content[0].text == "It is"  # type: ignore[union-attr]
    assert (f.arguments, g.arguments) == ('{"a": 1}', "{}")  # type: ignore[union-attr]
    assert late.content[0].text == "late" and late.status == "incomplete"  # type: ignore[union-attr]
    assert {item.status for item in writer.items[:-1]} == {"completed"}
    assert events.count("output_item.added") == events.count("output_item.done") == 5
    assert not list(writer.finish())


def test_a_call_that_breaks_off_is_incomplete() -> None:
    writer = ItemWriter("x")
    calls = [ToolDelta(0, "c0", "f", "{}"), ToolDelta(1, "c1", "g", '{"a"')]
    events = [*writer.write(News("", "", calls)), *writer.finish("completed")]
    assert [item.status for item in writer.items] == ["completed", "incomplete"]
    assert events[-1].item is writer.items[-1]


def test_an_engine_that_dies_ends_a_stream_with_an_event(tmp_path: Path, calling: Running) -> None:
    import os
    import signal

    body = {"input": "hi", "max_output_tokens": 3000, "stream": True, "seed": 1}
    lines: list[str] = []
    with calling.http.stream("POST", "/v1/responses", json=body) as reply:
        for line in reply.iter_lines():
            lines.append(line)
            if len(lines) == 20:
                os.kill(calling.engine_pid, signal.SIGKILL)
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line[:5] == "data:"]
    assert [event["type"] for event in events[-2:]] == ["error", "response.failed"]
    assert events[-1]["response"]["status"] == "failed" and events[-1]["response"]["error"]
    numbers = [event["sequence_number"] for event in events]
    assert numbers == list(range(len(events)))
    calling.wait_ready()
