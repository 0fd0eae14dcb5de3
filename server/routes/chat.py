"""/v1/chat/completions."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ..choices import chat_logprobs, prompt_logprobs
from ..conversation import Conversation, begin
from ..exchange import EventStream, JsonReply, exchange_of, read_body, unless_gone
from ..protocol.chat import (
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatDelta,
    ChatLogprobs,
    ChatMessage,
    ChatRequest,
    ChunkChoice,
)
from ..protocol.replies import UNSET, Unset
from ..protocol.tools import FunctionCall, FunctionDelta, ToolCallDelta, ToolCallReply
from ..reading import News
from ..service import Service, service_of
from ..stream import events
from ..tools import ToolDelta
from ..wire import Delta, LogprobEntry, Piece


async def chat_completions(request: Request) -> Response:
    """Continues a conversation."""
    service = service_of(request)
    service.check_room()
    body = await read_body(request, ChatRequest)
    talk = await unless_gone(request, begin(service, exchange_of(request), body))
    with talk.call if not body.streams else nullcontext():
        answer = Answer(service, body, talk)
        if body.streams:
            return EventStream(events(talk.call, answer.chunks, answer.last))
        return JsonReply(await unless_gone(request, answer.whole()))


@dataclass
class Choice:
    """One answer as it grows."""

    index: int
    begun: bool = False
    reasoning: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    calls: list[ToolCallReply] = field(default_factory=list)
    positions: list[list[LogprobEntry]] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    finish: str | None = None
    stop: int | str | None = None

    def take(self, piece: Piece, news: News, finish: str | None) -> None:
        """Keeps a piece for the whole reply."""
        self.reasoning.append(news.reasoning)
        self.texts.append(news.content)
        for delta in news.calls:
            if delta.name is not None:
                call = FunctionCall(delta.name, "")
                self.calls.append(ToolCallReply(id=delta.id or "", function=call))
            self.calls[-1].function.arguments += delta.arguments
        self.tokens += piece.tokens
        self.positions += piece.logprobs or []
        self.finish, self.stop = finish, piece.stop

    def message(self) -> ChatMessage:
        """The whole answer; content is null where there is something else instead."""
        content, reasoning = "".join(self.texts), "".join(self.reasoning)
        message = ChatMessage(content=content)
        if reasoning:
            message.reasoning_content = message.reasoning = reasoning
        if self.calls:
            message.tool_calls = self.calls
        if not content and (self.calls or reasoning):
            message.content = None
        return message


class Answer:
    """Turns the news of a call into the reply or into its chunks."""

    def __init__(self, service: Service, body: ChatRequest, talk: Conversation) -> None:
        self._service, self._body, self._talk, self._call = service, body, talk, talk.call
        self._head: dict[str, Any] = {
            "id": f"chatcmpl-{talk.call.exchange.id}",
            "created": int(time.time()),
            "model": talk.model,
            "system_fingerprint": service.fingerprint,
        }
        self._choices = [Choice(index) for index in range(talk.params.n)]
        self._about_prompt: dict[str, Any] = {}
        if body.return_token_ids:
            self._about_prompt["prompt_token_ids"] = talk.prompt.ids

    async def whole(self) -> ChatCompletion:
        """The reply, when everything has ended."""
        async for deltas in self._call.news():
            for _, delta in deltas:
                self._note_prompt(delta)
                for piece in delta.pieces:
                    news = self._read(piece)
                    self._choices[piece.index].take(piece, news, self._talk.finish(piece))
        return ChatCompletion(
            **self._head,
            choices=[self._choice(choice) for choice in self._choices],
            usage=self._call.usage(),
            saccade=self._call.extras(),
            **self._about_prompt,
        )

    def _choice(self, choice: Choice) -> ChatChoice:
        return ChatChoice(
            index=choice.index,
            message=choice.message(),
            logprobs=self._logprobs(choice.tokens, choice.positions),
            finish_reason=choice.finish,
            stop_reason=choice.stop,
            token_ids=self._token_ids(choice.tokens),
        )

    def chunks(self, number: int, delta: Delta) -> list[ChatChunk]:
        """What a delta adds to the stream."""
        self._note_prompt(delta)
        return [chunk for piece in delta.pieces for chunk in self._chunks(piece)]

    def _chunks(self, piece: Piece) -> list[ChatChunk]:
        choice, found = self._choices[piece.index], []
        if not choice.begun:
            choice.begun = True
            opening = ChunkChoice(index=choice.index, delta=ChatDelta(role="assistant", content=""))
            found.append(self._chunk(opening, self._about_prompt))
        news = self._read(piece)
        parts = [
            ChunkChoice(index=choice.index, delta=delta, token_ids=self._token_ids([]))
            for delta in deltas(news)
        ]
        if not parts and (piece.finish or self._body.logprobs or self._body.return_token_ids):
            parts = [ChunkChoice(index=choice.index, delta=ChatDelta())]
        if parts:  # the tokens of a piece stand beside the first of its chunks
            parts[0].logprobs = self._logprobs(piece.tokens, piece.logprobs or [])
            parts[0].token_ids = self._token_ids(piece.tokens)
            parts[-1].finish_reason = self._talk.finish(piece)
        if piece.finish is not None:
            parts[-1].stop_reason = piece.stop
        return found + [self._chunk(part, {}) for part in parts]

    def _token_ids(self, tokens: list[int]) -> list[int] | Unset:
        return tokens if self._body.return_token_ids else UNSET

    def _read(self, piece: Piece) -> News:
        news = self._talk.read(piece)
        if self._body.include_reasoning is False:
            news.reasoning = ""
        return news

    def _chunk(self, part: ChunkChoice, more: dict[str, Any]) -> ChatChunk:
        options = self._body.stream_options
        usage: Any = UNSET
        if options is not None and options.include_usage:
            usage = self._call.usage() if options.continuous_usage_stats else None
        return ChatChunk(**self._head, choices=[part], usage=usage, **more)

    def last(self) -> list[ChatChunk]:
        """The chunk behind all others, if usage was asked for."""
        options = self._body.stream_options
        if options is None or not options.include_usage:
            return []
        usage, extras = self._call.usage(), self._call.extras()
        return [ChatChunk(**self._head, choices=[], usage=usage, saccade=extras)]

    def _note_prompt(self, delta: Delta) -> None:
        if delta.prompt_logprobs is not None:
            found = prompt_logprobs(self._service.texts, delta.prompt_logprobs)
            self._about_prompt["prompt_logprobs"] = found

    def _logprobs(
        self, tokens: list[int], positions: list[list[LogprobEntry]]
    ) -> ChatLogprobs | None:
        if not self._body.logprobs:
            return None
        top, as_ids = self._body.top_logprobs or 0, self._body.return_tokens_as_token_ids
        return chat_logprobs(self._service.texts, tokens, positions, top, as_ids)


def deltas(news: News) -> list[ChatDelta]:
    """News as the deltas of a stream, one thing at a time: many clients look at one alone."""
    found = []
    if news.reasoning:
        found.append(ChatDelta(reasoning_content=news.reasoning, reasoning=news.reasoning))
    if news.content:
        found.append(ChatDelta(content=news.content))
    return found + [ChatDelta(tool_calls=[call_delta(delta)]) for delta in news.calls]


def call_delta(delta: ToolDelta) -> ToolCallDelta:
    """News of a call."""
    function = FunctionDelta(delta.name or UNSET, delta.arguments)
    new = ToolCallDelta(index=delta.index, function=function)
    if delta.id is not None:
        new.id, new.type = delta.id, "function"
    return new
