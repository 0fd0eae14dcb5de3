"""Streams: joined they are the whole reply, however the engine's news were cut."""

from __future__ import annotations

import asyncio
import json
import random
import time
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade.engine.completion import Completion as EngineCompletion
from saccade.engine.params import SamplingParams
from saccade.engine.tokenizer import Tokenizer
from saccade.server.conversation import Conversation
from saccade.server.inbox import Inbox, RefusedError, UnavailableError
from saccade.server.pace import Pace
from saccade.server.prompts import Prompt
from saccade.server.protocol.chat import ChatRequest
from saccade.server.protocol.completions import CompletionRequest
from saccade.server.protocol.errors import ApiError
from saccade.server.protocol.replies import Extras, Usage
from saccade.server.reading import AnswerReader
from saccade.server.routes import chat, completions
from saccade.server.stream import events
from saccade.server.tokens import TokenTexts
from saccade.server.wire import Delta, End, Piece, Refused

from .running import Running, streamed

Body = dict[str, Any]


class FakeCall:
    """News that come in given portions; the last thing may be an error."""

    exchange = type("E", (), {"id": "x"})

    def __init__(self, portions: list[Any]) -> None:
        self.portions = portions
        self.closed = False
        self.error: ApiError | None = None

    async def news(self) -> Any:
        for portion in self.portions:
            await asyncio.sleep(0)
            if isinstance(portion, ApiError):
                raise portion
            yield portion

    def usage(self) -> Usage:
        return Usage(1, 2, 3)

    def extras(self) -> Extras:
        return Extras({}, {}, 0)

    def note_error(self, error: ApiError) -> None:
        self.error = error

    def close(self) -> None:
        self.closed = True


class FakeService:
    """What answers need of a service."""

    fingerprint = "fp"
    texts = TokenTexts(None)
    prompts = type("P", (), {"tokenizer": None})


def read(stream: Any) -> list[Body]:
    """The events of a stream, which must end as it should."""

    async def all_() -> bytes:
        return b"".join([part async for part in stream])

    lines = [line for line in asyncio.run(all_()).decode().split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1] if line[0] != ":"]


TEXTS = st.text(alphabet="ab\n é😀", max_size=6)


@st.composite
def cut_news(draw: st.DrawFn) -> tuple[int, int, list[Any]]:
    """(prompts, n, portions): every completion in pieces, interleaved, in any portions."""
    prompts, n = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    queues = {}
    for number in range(prompts):
        for index in range(n):
            texts = draw(st.lists(TEXTS, min_size=1, max_size=5))
            reason = draw(st.sampled_from(["stop", "length", "abort"]))
            pieces = [Piece(index, text, [7] * (len(text) or 1)) for text in texts]
            pieces[-1].finish = reason
            queues[number, index] = pieces
    flat: list[tuple[int, Delta]] = []
    while queues:
        key = draw(st.sampled_from(sorted(queues)))
        flat.append((key[0], Delta("r", 0, [queues[key].pop(0)])))
        if not queues[key]:
            del queues[key]
    cuts = sorted(draw(st.sets(st.integers(1, max(1, len(flat) - 1)))))
    bounds = [0, *[cut for cut in cuts if cut < len(flat)], len(flat)]
    portions: list[Any] = [flat[a:b] for a, b in pairwise(bounds)]
    if draw(st.booleans()):
        portions.insert(draw(st.integers(0, len(portions))), [])  # nothing came for long
    return prompts, n, portions


@given(cut_news(), st.booleans(), st.booleans())
@settings(max_examples=150)
def test_chunks_of_completions_join_to_the_whole(
    news: tuple[int, int, list[Any]], echo: bool, usage: bool
) -> None:
    count, n, portions = news
    prompts = [Prompt([5], f"<{number}>") for number in range(count)]

    def answer(stream: bool) -> completions.Answer:
        body = CompletionRequest(
            prompt=[prompt.text or "" for prompt in prompts], n=n, echo=echo, stream=stream
        )
        if usage and stream:
            body.stream_options = completions_options()
        return completions.Answer(FakeService(), body, FakeCall(portions), prompts, "m")  # type: ignore[arg-type]

    whole = asyncio.run(answer(False).whole())
    streaming = answer(True)
    call = streaming._call
    chunks = read(events(call, streaming.chunks, streaming.last))
    assert call.closed  # type: ignore[attr-defined]
    if usage:
        assert chunks[-1]["choices"] == [] and chunks.pop()["usage"]["total_tokens"] == 3
        assert all(chunk["usage"] is None for chunk in chunks)
    joined: dict[int, Body] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            mine = joined.setdefault(choice["index"], {"text": "", "finish": None})
            assert mine["finish"] is None  # nothing comes after the end
            mine["text"] += choice["text"]
            mine["finish"] = choice["finish_reason"]
    expected = {
        choice.index: {"text": choice.text, "finish": choice.finish_reason}
        for choice in whole.choices
    }
    assert joined == expected and sorted(joined) == list(range(count * n))
    if echo:
        assert all(text["text"].startswith(f"<{i // n}>") for i, text in joined.items())


def completions_options() -> Any:
    from saccade.server.protocol.sampling import StreamOptions

    return StreamOptions(include_usage=True)


@given(cut_news())
@settings(max_examples=100)
def test_chunks_of_chats_join_to_the_whole(news: tuple[int, int, list[Any]]) -> None:
    _, n, portions = news
    portions = [[(0, delta) for number, delta in portion if number == 0] for portion in portions]

    def answer() -> chat.Answer:
        body = ChatRequest(messages=[], n=n)
        readers = [AnswerReader(None, None) for _ in range(n)]
        call: Any = FakeCall(portions)
        talk = Conversation(call, Prompt([5], ""), "m", SamplingParams(n=n), readers)
        return chat.Answer(FakeService(), body, talk)  # type: ignore[arg-type]

    whole = asyncio.run(answer().whole())
    streaming = answer()
    seen: dict[int, Body] = {}
    for chunk in read(events(streaming._call, streaming.chunks, streaming.last)):
        (choice,) = chunk["choices"]
        if choice["index"] not in seen:
            assert choice["delta"] == {"role": "assistant", "content": ""}
            seen[choice["index"]] = {"text": "", "finish": None}
            continue
        mine = seen[choice["index"]]
        assert "role" not in choice["delta"] and mine["finish"] is None
        mine["text"] += choice["delta"].get("content", "")
        mine["finish"] = choice["finish_reason"]
    assert seen == {
        choice.index: {"text": choice.message.content, "finish": choice.finish_reason}
        for choice in whole.choices
    }


def test_an_error_before_the_first_event_has_a_status() -> None:
    call = FakeCall([[], ApiError(503, "no")])
    stream = events(call, lambda *_: [], list)  # type: ignore[arg-type]

    async def first_two() -> None:
        assert await anext(stream) == b": ping\n\n"
        with pytest.raises(StopAsyncIteration):
            while True:
                await anext(stream)

    asyncio.run(first_two())
    assert call.closed and call.error is not None  # it was an event: the status had been sent
    early = FakeCall([ApiError(503, "no")])

    async def first() -> None:
        with pytest.raises(ApiError, match="no"):
            await anext(events(early, lambda *_: [], list))  # type: ignore[arg-type]

    asyncio.run(first())
    assert early.closed


def test_a_late_error_is_an_event_before_the_end() -> None:
    call = FakeCall([[(0, Delta("r", 0, [Piece(0, "a", [1])]))], ApiError(500, "broke")])
    chunks = read(events(call, lambda *_: [{"some": "chunk"}], list))  # type: ignore[arg-type]
    assert chunks[0] == {"some": "chunk"}
    assert chunks[1]["error"]["message"] == "broke"


@given(st.text(alphabet="abc", min_size=1, max_size=30), st.lists(TEXTS, max_size=4))
@settings(max_examples=100)
def test_the_engine_holds_partial_stops_back(text: str, stops: list[str]) -> None:
    """What the stream shows never has to be taken back."""
    params = SamplingParams(stop=[stop for stop in stops if stop], detokenize=True)
    completion = EngineCompletion(0, params, None)
    shown = ""
    for letter in text:
        step = completion._checker.push(letter)
        shown += step.text
        if step.matched is not None:
            break
    else:
        shown += completion._checker.flush()
    assert text.startswith(shown)
    found = [text.find(stop) + len(stop) for stop in params.stop_strings if stop in text]
    if not found:
        assert shown == text


@pytest.mark.parametrize("seed", range(6))
def test_streamed_and_whole_from_a_real_engine(server: Running, seed: int) -> None:
    """A tiny random model writes broken UTF-8 all the time."""
    rng = random.Random(seed)
    for _ in range(4):
        n = rng.choice([1, 1, 2, 3])
        body: Body = {
            "prompt": rng.choice(["def add", ["return", "add("], [40, 41, 42]]),
            "n": n,
            "seed": rng.randrange(1000),
            "max_tokens": rng.randrange(1, 60),
            "stop": rng.sample(["a", "e", "é", "\n", "ad", "re", "\ufffd\ufffd", "1"], 2),
            "echo": rng.random() < 0.5,
            "logprobs": rng.choice([None, 0, 2]),
            "include_stop_str_in_output": rng.random() < 0.3,
            "return_token_ids": True,
        }
        reply = server.http.post("/v1/completions", json=body)
        assert reply.status_code == 200, reply.text
        joined: dict[int, Body] = {}
        for chunk in streamed(server, "/v1/completions", body):
            for choice in chunk["choices"]:
                mine = joined.setdefault(choice["index"], {"text": "", "ids": [], "logprobs": []})
                mine["text"] += choice["text"]
                mine["ids"] += choice["token_ids"]
                mine["logprobs"] += (choice["logprobs"] or {}).get("tokens", [])
                mine["finish"] = choice["finish_reason"]
        for choice in reply.json()["choices"]:
            logprobs = (choice["logprobs"] or {}).get("tokens", [])
            assert joined[choice["index"]] == {
                "text": choice["text"],
                "ids": choice["token_ids"],
                "logprobs": logprobs,
                "finish": choice["finish_reason"],
            }


def test_inboxes_give_news_before_errors() -> None:

    async def run() -> None:
        closed: list[list[str]] = []
        inbox = Inbox(closed.append, Pace())
        inbox.open = {"a": 0, "b": 1}
        inbox.put("a", Delta("a", 0, []))
        inbox.put("b", UnavailableError("gone", 3))
        assert [each.number for each in await inbox.take(1)] == [0]
        assert not inbox.finished
        with pytest.raises(UnavailableError, match="gone"):
            await inbox.take(1)
        inbox.close()
        inbox.close()
        assert closed == [["a"]]
        quiet = Inbox(closed.append, Pace())
        quiet.open = {"c": 0}
        assert await quiet.take(0.01) == []
        asyncio.get_running_loop().call_later(
            0.01, quiet.put, "c", RefusedError(Refused("c", "no"))
        )
        with pytest.raises(RefusedError, match="no"):
            await quiet.take(5)

    asyncio.run(run())


def test_news_that_come_fast_are_given_out_together() -> None:
    async def run() -> None:
        pace, loop = Pace(0.2), asyncio.get_running_loop()
        inbox, other = Inbox(lambda ids: None, pace), Inbox(lambda ids: None, pace)
        inbox.open, other.open = {"a": 0}, {"b": 0}

        def report(end: End | None = None) -> None:
            inbox.put("a", Delta("a", 0, [], end=end))
            other.put("b", Delta("b", 0, []))
            pace.reported(time.monotonic())

        began = loop.time()
        report()
        assert len(await inbox.take(5)) == 1 and loop.time() - began < 0.1  # the first: at once
        report()
        assert len(await inbox.take(5)) == 1 and loop.time() - began < 0.1  # none was before it
        for delay in (0.05, 0.1, 0.15, 0.3):
            loop.call_later(delay, report)
        assert len(await inbox.take(5)) == 4 and 0.25 < loop.time() - began < 0.35  # with a report
        assert len(await other.take(5)) == 6 and loop.time() - began < 0.35  # both at once
        report()
        assert len(await inbox.take(5)) == 1 and 0.4 < loop.time() - began < 1.5  # no other came
        report(End({}, {}, 0))
        began = loop.time()
        assert len(await inbox.take(5)) == 1 and loop.time() - began < 0.1  # an end does not wait
        assert inbox.finished and len(await other.take(5)) == 2
        assert await other.take(0.6) == [] and loop.time() - began > 0.5  # nothing is no news

    asyncio.run(run())


def test_token_bytes_join_to_the_text(tiny: Any) -> None:
    tokenizer = Tokenizer.from_folder(tiny)
    texts = TokenTexts(tokenizer)
    text = "def é😀\n  add"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert b"".join(texts.bytes_of(each) for each in ids).decode() == text
    partial = [each for each in ids if texts.text_of(each).startswith("bytes:")]
    assert partial and all(texts.text_of(each)[6:8] == "\\x" for each in partial)
    assert TokenTexts(None).text_of(3) == "token_id:3" and TokenTexts(None).bytes_of(3) == b""
