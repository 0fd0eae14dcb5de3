"""Everything that the official client can ask of a server, asked with it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from .running import Running


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


CHAT: list[Any] = [{"role": "user", "content": "add 1 and 2"}]


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny", "alias/of-it"]
    assert client.models.retrieve("alias/of-it").id == "alias/of-it"
    with pytest.raises(openai.NotFoundError, match="no model 'nobody'") as refusal:
        client.models.retrieve("nobody")
    assert refusal.value.code == "model_not_found" and refusal.value.param == "model"


def test_a_completion_and_its_usage(client: openai.OpenAI) -> None:
    reply = client.completions.create(model="tiny", prompt="def add", max_tokens=9, temperature=0)
    assert reply.object == "text_completion" and reply.id.startswith("cmpl-")
    assert reply.choices[0].finish_reason == "length" and reply.choices[0].text
    usage = reply.usage
    assert usage is not None and usage.completion_tokens == 9
    assert usage.total_tokens == usage.prompt_tokens + 9


def test_the_default_of_max_tokens(client: openai.OpenAI) -> None:
    reply = client.completions.create(
        model="tiny", prompt="def", extra_body={"ignore_eos": True}, seed=1
    )
    assert reply.usage is not None and reply.usage.completion_tokens == 16


def test_prompts_of_every_kind(client: openai.OpenAI) -> None:
    options: Any = {"model": "tiny", "max_tokens": 5, "temperature": 0}
    ids = [[40, 41, 42], [50, 51, 52, 53]]
    both = client.completions.create(prompt=ids, **options)
    assert [choice.index for choice in both.choices] == [0, 1]
    alone = [client.completions.create(prompt=each, **options) for each in ids]
    assert [c.text for c in both.choices] == [each.choices[0].text for each in alone]
    assert both.usage is not None and both.usage.prompt_tokens == 7
    texts = client.completions.create(prompt=["def add", "return"], **options)
    assert [c.text for c in texts.choices] == [
        client.completions.create(prompt=each, **options).choices[0].text
        for each in ("def add", "return")
    ]


def test_n_and_seed(client: openai.OpenAI) -> None:
    def ask(seed: int) -> list[str]:
        reply = client.completions.create(
            model="tiny", prompt=["def add", "return"], n=3, max_tokens=6, seed=seed
        )
        assert [choice.index for choice in reply.choices] == list(range(6))
        return [choice.text for choice in reply.choices]

    assert ask(7) == ask(7) != ask(8)
    assert len(set(ask(7)[:3])) > 1


def test_echo_and_logprobs(client: openai.OpenAI) -> None:
    reply = client.completions.create(
        model="tiny", prompt="def add", max_tokens=4, temperature=0, echo=True, logprobs=3
    )
    choice = reply.choices[0]
    assert choice.text.startswith("def add") and choice.logprobs is not None
    logprobs = choice.logprobs
    assert logprobs.tokens and logprobs.token_logprobs and logprobs.top_logprobs
    assert logprobs.text_offset is not None
    assert reply.usage is not None
    assert len(logprobs.tokens) == reply.usage.total_tokens == len(logprobs.top_logprobs)
    assert logprobs.token_logprobs[0] is None and logprobs.top_logprobs[0] is None
    for token, own, top in list(
        zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True)
    )[1:]:
        assert 3 <= len(top) <= 4 and max(top.values()) <= 0
        assert top[token] == pytest.approx(own)
    ends = [*logprobs.text_offset[1:], len(choice.text)]
    for token, start, end in zip(logprobs.tokens, logprobs.text_offset, ends, strict=True):
        part = token.startswith("bytes:")  # of a character: it ends in the text as U+FFFD or later
        assert choice.text[start:end] in ("", "\ufffd") if part else choice.text[start:end] == token


def test_scoring_a_prompt_needs_no_new_token(client: openai.OpenAI) -> None:
    reply = client.completions.create(
        model="tiny", prompt="def add", max_tokens=0, echo=True, logprobs=0
    )
    assert reply.choices[0].text == "def add" and reply.choices[0].logprobs is not None
    assert reply.usage is not None and reply.choices[0].logprobs.tokens is not None
    assert len(reply.choices[0].logprobs.tokens) == reply.usage.prompt_tokens
    assert reply.choices[0].finish_reason == "length" and reply.usage.completion_tokens == 0


def test_stop_strings_and_stop_tokens(client: openai.OpenAI) -> None:
    options: Any = {"model": "tiny", "prompt": "def add", "max_tokens": 30, "temperature": 0}
    whole = client.completions.create(**options, logprobs=0).choices[0]
    stop = whole.text[4:6]
    cut = client.completions.create(**options, stop=[stop, "never there"]).choices[0]
    assert cut.text == whole.text[: whole.text.index(stop)] and cut.finish_reason == "stop"
    assert cut.stop_reason == stop  # type: ignore[attr-defined]
    kept = client.completions.create(
        **options, stop=stop, extra_body={"include_stop_str_in_output": True}
    ).choices[0]
    assert kept.text == cut.text + stop
    ids = client.completions.create(**options, extra_body={"return_token_ids": True}).choices[0]
    token = ids.token_ids[3]  # type: ignore[attr-defined]
    by_token = client.completions.create(**options, extra_body={"stop_token_ids": [token]})
    assert by_token.choices[0].finish_reason == "stop"
    assert by_token.usage is not None
    assert by_token.usage.completion_tokens == ids.token_ids.index(token) + 1  # type: ignore[attr-defined]


def test_sampling_parameters_arrive(client: openai.OpenAI) -> None:
    options: Any = {"model": "tiny", "prompt": "def add", "max_tokens": 6, "seed": 3}
    biased = client.completions.create(**options, logit_bias={"70": 100})
    assert len(set(biased.choices[0].text)) == 1

    def texts(asked: dict[str, Any]) -> set[str]:
        return {
            client.completions.create(**{**asked, "seed": seed}).choices[0].text
            for seed in range(4)
        }

    plain = texts(options)
    for more in (
        {"temperature": 0.2},
        {"top_p": 0.05},
        {"presence_penalty": 2.0},
        {"frequency_penalty": -2.0},
        {"extra_body": {"top_k": 1}},
        {"extra_body": {"min_p": 0.9}},
        {"extra_body": {"repetition_penalty": 1.9}},
    ):
        changed: Any = {**options, **more}
        assert texts(changed) != plain, more
    assert texts(options) == plain


def test_min_tokens_and_ignore_eos(client: openai.OpenAI) -> None:
    options: Any = {"model": "tiny", "prompt": "def", "max_tokens": 12, "logit_bias": {"1": 100}}
    at_once = client.completions.create(**options)
    assert at_once.choices[0].finish_reason == "stop" and at_once.choices[0].text == ""
    later = client.completions.create(**options, extra_body={"min_tokens": 5})
    assert later.usage is not None and later.usage.completion_tokens == 6
    never = client.completions.create(**options, extra_body={"ignore_eos": True})
    assert never.usage is not None and never.usage.completion_tokens == 12


def test_cached_tokens_and_their_salt(client: openai.OpenAI) -> None:
    prompt = list(range(100, 200))

    def cached(**more: Any) -> int:
        reply = client.completions.create(model="tiny", prompt=prompt, max_tokens=1, **more)
        assert reply.usage is not None and reply.usage.prompt_tokens_details is not None
        return reply.usage.prompt_tokens_details.cached_tokens or 0

    assert cached() == 0 and cached() >= 80
    assert cached(extra_body={"cache_salt": "mine"}) == 0
    assert cached(extra_body={"cache_salt": "mine"}) >= 80


def test_truncation_keeps_the_end(client: openai.OpenAI) -> None:
    ids = list(range(30, 60))
    options: Any = {"model": "tiny", "max_tokens": 4, "temperature": 0}
    cut = client.completions.create(
        prompt=ids, **options, extra_body={"truncate_prompt_tokens": 10}
    )
    assert cut.usage is not None and cut.usage.prompt_tokens == 10
    assert (
        cut.choices[0].text
        == client.completions.create(prompt=ids[-10:], **options).choices[0].text
    )


def test_prompt_logprobs(client: openai.OpenAI) -> None:
    reply = client.completions.create(
        model="tiny", prompt=[40, 41, 42, 43], max_tokens=1, extra_body={"prompt_logprobs": 2}
    )
    found = reply.choices[0].prompt_logprobs  # type: ignore[attr-defined]
    assert found[0] is None and len(found) == 4
    for position, token in enumerate((41, 42, 43), 1):
        assert set(found[position][str(token)]) == {"logprob", "rank", "decoded_token"}
        assert {1, 2} <= {entry["rank"] for entry in found[position].values()}


@pytest.mark.parametrize("usage", [False, True])
def test_a_streamed_completion(client: openai.OpenAI, usage: bool) -> None:
    options: Any = {"model": "tiny", "prompt": "def add", "max_tokens": 12, "temperature": 0}
    whole = client.completions.create(**options)
    more: Any = {"stream_options": {"include_usage": True}} if usage else {}
    chunks = list(client.completions.create(**options, stream=True, **more))
    assert "".join(c.choices[0].text for c in chunks if c.choices) == whole.choices[0].text
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert len({chunk.id for chunk in chunks}) == 1
    if usage:
        assert not chunks[-1].choices and chunks[-1].usage is not None and whole.usage is not None
        assert chunks[-1].usage.completion_tokens == 12
        assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens


def test_a_chat(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model="alias/of-it", messages=CHAT, max_completion_tokens=7, temperature=0
    )
    assert reply.model == "alias/of-it" and reply.object == "chat.completion"
    message = reply.choices[0].message
    assert message.role == "assistant" and message.content and message.refusal is None
    assert reply.usage is not None and reply.usage.completion_tokens == 7
    parts: Any = [{"role": "user", "content": [{"type": "text", "text": "add 1 and 2"}]}]
    again = client.chat.completions.create(
        model="tiny", messages=parts, max_tokens=7, temperature=0
    )
    assert again.choices[0].message.content == message.content


def test_a_chat_goes_up_to_the_models_length(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model="tiny", messages=CHAT, extra_body={"ignore_eos": True}
    )
    assert reply.usage is not None and reply.usage.total_tokens == 512


def test_chat_logprobs(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model="tiny", messages=CHAT, max_tokens=20, temperature=0, logprobs=True, top_logprobs=4
    )
    choice = reply.choices[0]
    assert choice.logprobs is not None and choice.logprobs.content is not None
    raw = b"".join(bytes(entry.bytes or ()) for entry in choice.logprobs.content)
    assert raw.decode("utf-8", "replace") == choice.message.content
    for entry in choice.logprobs.content:
        assert len(entry.top_logprobs) == 4
        assert entry.token == entry.top_logprobs[0].token  # greedy
        values = [each.logprob for each in entry.top_logprobs]
        assert values == sorted(values, reverse=True) and values[0] == entry.logprob <= 0


def test_a_streamed_chat(client: openai.OpenAI) -> None:
    options: Any = {"model": "tiny", "messages": CHAT, "max_tokens": 15, "n": 3, "seed": 11}
    whole = client.chat.completions.create(**options)
    stream = client.chat.completions.create(
        **options, stream=True, stream_options={"include_usage": True}
    )
    seen: dict[int, str] = {}
    finished: dict[int, str | None] = {}
    last = None
    for chunk in stream:
        last = chunk
        for choice in chunk.choices:
            if choice.index not in seen:  # the role comes first
                assert choice.delta.role == "assistant" and not choice.delta.content
            seen[choice.index] = seen.get(choice.index, "") + (choice.delta.content or "")
            if choice.finish_reason:
                finished[choice.index] = choice.finish_reason
    assert seen == {choice.index: choice.message.content for choice in whole.choices}
    assert finished == {choice.index: choice.finish_reason for choice in whole.choices}
    assert last is not None and last.usage is not None and whole.usage is not None
    assert last.usage.completion_tokens == whole.usage.completion_tokens


def test_the_final_message_is_continued(client: openai.OpenAI) -> None:
    messages: list[Any] = [*CHAT, {"role": "assistant", "content": "It is"}]
    chat = client.chat.completions.create(
        model="tiny",
        messages=messages,
        max_tokens=6,
        temperature=0,
        extra_body={"continue_final_message": True, "add_generation_prompt": False},
    )
    prompt = "[user]add 1 and 2\n[assistant]It is"
    plain = client.completions.create(model="tiny", prompt=prompt, max_tokens=6, temperature=0)
    assert chat.choices[0].message.content == plain.choices[0].text


def test_async_clients_at_once(server: Running) -> None:
    import asyncio

    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            replies = await asyncio.gather(
                *(
                    client.completions.create(
                        model="tiny", prompt=[40 + i], max_tokens=10, temperature=0
                    )
                    for i in range(24)
                )
            )
        return [reply.choices[0].text for reply in replies]

    first, second = asyncio.run(ask()), asyncio.run(ask())
    assert first == second and len(set(first)) > 12


def test_a_stream_that_is_left(client: openai.OpenAI, server: Running) -> None:
    stream = client.completions.create(
        model="tiny",
        prompt="def add",
        max_tokens=400,
        stream=True,
        extra_body={"ignore_eos": True},
        extra_headers={"X-Request-Id": "left-early"},
    )
    next(stream)
    stream.close()
    assert server.pages()["used"] == 0
    line = server.wait_for("request", id="left-early")  # it may follow the freeing of the pages
    assert line["client_gone"] and line["completion_tokens"] < 400


def test_saccades_own_figures(client: openai.OpenAI) -> None:
    reply = client.completions.create(model="tiny", prompt="def add", max_tokens=3)
    figures = reply.saccade  # type: ignore[attr-defined]
    assert figures["timings"]["ttft_s"] > 0 and figures["preemptions"] == 0
    assert figures["attention"]["decode"]["share"] == 1.0
