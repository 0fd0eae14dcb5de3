"""/v1/chat/completions."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ..call import Call
from ..choices import chat_logprobs, prompt_logprobs
from ..exchange import EventStream, JsonReply, exchange_of, read_body, unless_gone
from ..prompts import Prompt, truncate
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
from ..protocol.replies import UNSET
from ..sampling import check_lengths, sampling_params
from ..service import Service, service_of
from ..stream import events
from ..wire import Delta, LogprobEntry, Piece


async def chat_completions(request: Request) -> Response:
    """Continues a conversation."""
    service, exchange = service_of(request), exchange_of(request)
    body = await read_body(request, ChatRequest)
    body.check_fields()
    model = service.model_name(body.model)
    params = sampling_params(body.to_sampling, service.defaults, body.names)
    limits = service.config.limits
    limits.check_shape(1, params.n)
    limits.check_output(params.n, params.max_tokens or 0, params.logprobs)
    call = Call(service, exchange, params.n)
    try:
        info = service.engine_info()
        special = body.add_special_tokens is True
        prompt = await service.prompts.render(body.messages, special, **body.rendering())
        prompt = truncate(prompt, body.truncate_prompt_tokens, info.max_model_len)
        check_lengths(len(prompt.ids), body.output_limit, info.max_model_len, "messages")
        limits.check_prompt_logprobs(len(prompt.ids), params.prompt_logprobs)
        call.submit([prompt], params, **body.placing())
        exchange.fields |= {"model": model, "stream": body.streams}
        answer = Answer(service, body, call, prompt, model)
        if body.streams:
            return EventStream(events(call, answer.chunks, answer.last))
        with call:
            return JsonReply(await unless_gone(request, answer.whole()))
    except BaseException:
        call.close()
        raise


@dataclass
class Choice:
    """One answer as it grows."""

    index: int
    begun: bool = False
    texts: list[str] = field(default_factory=list)
    positions: list[list[LogprobEntry]] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    finish: Any = None
    stop: int | str | None = None

    def take(self, piece: Piece) -> None:
        """Keeps a piece for the whole reply."""
        self.texts.append(piece.text)
        self.tokens += piece.tokens
        self.positions += piece.logprobs or []
        self.finish, self.stop = piece.finish, piece.stop


class Answer:
    """Turns the news of a call into the reply or into its chunks."""

    def __init__(
        self, service: Service, body: ChatRequest, call: Call, prompt: Prompt, model: str
    ) -> None:
        self._service, self._body, self._call, self._prompt = service, body, call, prompt
        self._head: dict[str, Any] = {
            "id": f"chatcmpl-{call.exchange.id}",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": service.fingerprint,
        }
        self._choices = [Choice(index) for index in range(body.n or 1)]
        self._about_prompt: dict[str, Any] = {}
        if body.return_token_ids:
            self._about_prompt["prompt_token_ids"] = prompt.ids

    async def whole(self) -> ChatCompletion:
        """The reply, when everything has ended."""
        async for news in self._call.news():
            for _, delta in news:
                self._note_prompt(delta)
                for piece in delta.pieces:
                    self._choices[piece.index].take(piece)
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
            message=ChatMessage(content="".join(choice.texts)),
            logprobs=self._logprobs(choice.tokens, choice.positions),
            finish_reason=choice.finish,
            stop_reason=choice.stop,
            token_ids=choice.tokens if self._body.return_token_ids else UNSET,
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
        part = ChunkChoice(
            index=choice.index,
            delta=ChatDelta(content=piece.text) if piece.text else ChatDelta(),
            logprobs=self._logprobs(piece.tokens, piece.logprobs or []),
            finish_reason=piece.finish,
        )
        if piece.finish is not None:
            part.stop_reason = piece.stop
        if self._body.return_token_ids:
            part.token_ids = piece.tokens
        if piece.text or piece.finish or part.logprobs or self._body.return_token_ids:
            found.append(self._chunk(part, {}))
        return found

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
        return chat_logprobs(self._service.texts, tokens, positions, self._body.top_logprobs or 0)
