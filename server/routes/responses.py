"""/v1/responses."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ..choices import chat_logprobs
from ..conversation import Conversation, begin
from ..exchange import EventStream, JsonReply, exchange_of, read_body, unless_gone
from ..items import ItemWriter
from ..protocol.chat import ChatRequest, TokenLogprob
from ..protocol.errors import ApiError
from ..protocol.items import place
from ..protocol.replies import Usage
from ..protocol.responses import (
    Incomplete,
    InputDetails,
    OutputDetails,
    OutputText,
    ReasoningOptions,
    ResponseError,
    ResponseEvent,
    ResponseReply,
    ResponsesRequest,
    ResponseUsage,
)
from ..service import service_of
from ..stream import Form, events
from ..tokens import TokenTexts
from ..wire import Delta, Piece

# What a chat calls the fields of this route.
_NAMES = {
    "messages": "input",
    "response_format": "text.format",
    "max_completion_tokens": "max_output_tokens",
    "reasoning_effort": "reasoning.effort",
}
_STATUS = {"length": "incomplete", "abort": "cancelled"}
_LAST = {"completed": "completed", "incomplete": "incomplete", "cancelled": "incomplete"}
_encode = msgspec.json.Encoder().encode


async def responses(request: Request) -> Response:
    """Continues a conversation that comes whole; nothing is stored."""
    service = service_of(request)
    service.check_room()
    body = await read_body(request, ResponsesRequest)
    body.check_fields()
    read = body.read_input()
    chat = body.to_chat(read.messages)
    try:
        talk = await unless_gone(request, begin(service, exchange_of(request), chat))
    except ApiError as error:
        raise in_own_words(error, read.places) from None
    with talk.call if not chat.streams else nullcontext():
        answer = Answer(body, chat, talk, service.texts)
        if chat.streams:
            form = Form(answer.encode, answer.failure, b"", in_own_words)
            return EventStream(events(talk.call, answer.chunks, answer.last, form))
        try:
            return JsonReply(await unless_gone(request, answer.whole()))
        except ApiError as error:
            raise in_own_words(error) from None


def in_own_words(error: ApiError, places: Mapping[str, str] | None = None) -> ApiError:
    """An error with this route's names of the fields; places: of messages (see `Input`), at which
    nobody looks any more when the engine has begun.
    """
    param = error.info.param
    if param is None:
        return error
    known = {**_NAMES, **(places or {})}

    def own(name: str) -> str:
        return place(name, known).replace("].function", "]")

    # "messages" is a word too: within a sentence it stays what it is. What is named may lie deeper.
    before, behind = (r"(?<![\w.])", r"[\w.\[\]]*") if re.search(r"[\W_]", param) else ("^", "")
    name = before + re.escape(param) + behind
    message = re.sub(name, lambda found: own(found[0]), error.info.message, count=1)
    return ApiError(error.status, message, own(param), error.info.code, error.headers)


class Answer:
    """Turns the news of a call into the reply or into its events."""

    def __init__(
        self, body: ResponsesRequest, chat: ChatRequest, talk: Conversation, texts: TokenTexts
    ) -> None:
        self._talk, self._texts = talk, texts
        self._top = (body.top_logprobs or 0) if body.wants_logprobs else None
        self._writer = ItemWriter(talk.call.exchange.id)
        self._begun = False
        form = chat.response_format
        schema = None if form is None or form.json_schema is None else form.json_schema
        shown: dict[str, Any] = {"type": "text" if form is None else form.type}
        if schema is not None:
            shown |= {"name": schema.name or "response", "schema": schema.schema, "strict": True}
        verbosity = None if body.text is None else body.text.verbosity
        self._reply = ResponseReply(
            id=f"resp_{talk.call.exchange.id}",
            created_at=int(time.time()),
            status="in_progress",
            instructions=body.instructions,
            metadata=body.metadata or {},
            model=talk.model,
            output=self._writer.items,
            parallel_tool_calls=body.parallel_tool_calls is not False,
            temperature=talk.params.temperature,
            tool_choice="auto" if body.tool_choice is None else body.tool_choice,
            tools=[shown_tool(tool) for tool in body.tools or ()],
            top_logprobs=body.top_logprobs or 0,
            top_p=talk.params.top_p,
            max_output_tokens=body.max_output_tokens,
            reasoning=body.reasoning or ReasoningOptions(),
            text={"format": shown, "verbosity": verbosity},
            user=body.user,
        )

    async def whole(self) -> ResponseReply:
        """The reply, when everything has ended."""
        async for news in self._talk.call.news():
            for number, delta in news:
                self.chunks(number, delta)
        self.last()
        return self._reply

    def chunks(self, number: int, delta: Delta) -> list[ResponseEvent]:
        """What a delta adds to the stream."""
        found = []
        if not self._begun:
            self._begun = True
            for name in ("created", "in_progress"):
                found.append(self._writer.event(name, response=snapshot(self._reply)))
        return found + [each for piece in delta.pieces for each in self._events(piece)]

    def _events(self, piece: Piece) -> Iterator[ResponseEvent]:
        """They are copied at once, before what they show grows on."""
        for each in self._writer.write(self._talk.read(piece), self._logprobs(piece)):
            yield copied(each)
        if piece.finish is not None:
            self._reply.status = _STATUS.get(piece.finish, "completed")
            if piece.finish == "length":
                self._reply.incomplete_details = Incomplete("max_output_tokens")
            done = self._reply.status == "completed"
            for each in self._writer.finish("completed" if done else "incomplete"):
                yield copied(each)

    def _logprobs(self, piece: Piece) -> list[TokenLogprob]:
        if self._top is None:
            return []
        return chat_logprobs(self._texts, piece.tokens, piece.logprobs or [], self._top).content

    def last(self) -> list[ResponseEvent]:
        """The event behind all others, with the whole response."""
        self._reply.usage = usage(self._talk.call.usage())
        return [self._writer.event(_LAST[self._reply.status], response=self._reply)]

    def encode(self, event: ResponseEvent) -> bytes:
        """An event for the wire."""
        return b"event: " + event.type.encode() + b"\ndata: " + _encode(event) + b"\n\n"

    def failure(self, error: ApiError) -> bytes:
        """What a stream says that cannot go on."""
        info = in_own_words(error).info
        self._reply.status = "failed"
        self._reply.error = ResponseError(info.code or "server_error", info.message)
        told = self._writer.event("error", message=info.message, code=info.code, param=info.param)
        told.type = "error"
        failed = self._writer.event("failed", response=self._reply)
        return self.encode(told) + self.encode(failed)


def usage(found: Usage) -> ResponseUsage:
    """Token counts under this route's names."""
    return ResponseUsage(
        input_tokens=found.prompt_tokens,
        input_tokens_details=InputDetails(found.prompt_tokens_details.cached_tokens),
        output_tokens=found.completion_tokens,
        output_tokens_details=OutputDetails(found.completion_tokens_details.reasoning_tokens),
        total_tokens=found.total_tokens,
    )


def shown_tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A tool as replies show it: clients expect these two fields."""
    return {"parameters": None, "strict": None, **tool}


def snapshot(reply: ResponseReply) -> ResponseReply:
    """The reply as it is now."""
    return msgspec.structs.replace(reply, output=list(reply.output))


def copied(event: ResponseEvent) -> ResponseEvent:
    """An event with an item and a part of its own."""
    for name in ("item", "part"):
        value = getattr(event, name)
        if isinstance(value, msgspec.Struct):
            fresh: Any = _copy(value)
            if getattr(fresh, "content", None) is not None:
                fresh.content = [_copy(part) for part in fresh.content]
            setattr(event, name, fresh)
    return event


def _copy(value: msgspec.Struct) -> msgspec.Struct:
    fresh = msgspec.structs.replace(value)
    if isinstance(fresh, OutputText):
        fresh.logprobs = list(fresh.logprobs)
    return fresh
