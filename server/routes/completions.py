"""/v1/completions."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ..call import Call
from ..choices import TextLogprobBuilder, clamp, extend, prompt_logprobs
from ..exchange import EventStream, JsonReply, exchange_of, read_body, unless_gone
from ..prompts import Prompt, split_prompts, truncate
from ..protocol.completions import Completion, CompletionChoice, CompletionRequest, TextLogprobs
from ..protocol.replies import UNSET
from ..sampling import check_bias, check_lengths, sampling_params
from ..service import Service, service_of
from ..stream import events
from ..wire import Delta, Piece


async def completions(request: Request) -> Response:
    """Continues one prompt or several."""
    service, exchange = service_of(request), exchange_of(request)
    service.check_room()
    body = await read_body(request, CompletionRequest)
    body.check_fields()
    model = service.model_name(body.model)
    info, limits = service.engine_info(), service.config.limits
    limit, keep = info.max_model_len, body.truncate_prompt_tokens

    def check(tokens: int, more: bool) -> None:
        if keep is None:
            check_lengths(tokens, body.max_tokens, limit, "prompt", more)

    check_bias(body.logit_bias, info.vocab_size)
    params = sampling_params(body.to_sampling, service.defaults, body.names)
    items = split_prompts(body.prompt, lambda count: limits.check_shape(count, params.n), check)
    count = len(items)
    ending = limits.with_end(params, count * params.n)
    call = Call(service, exchange, count * params.n)
    try:
        special = body.add_special_tokens is not False
        reading = service.prompts.read(items, info.vocab_size, special, check)
        prompts = await unless_gone(request, reading)
        prompts = [truncate(each, keep, limit, params.max_tokens) for each in prompts]
        for prompt in prompts:
            check_lengths(len(prompt.ids), body.max_tokens, limit, "prompt")
        total = sum(len(prompt.ids) for prompt in prompts)
        asked = "logprobs" if body.prompt_logprobs is None else "prompt_logprobs"
        limits.check_prompt_logprobs(total, params.n, params.prompt_logprobs, asked)
        call.counts_output = body.max_tokens != 0
        call.submit(prompts, ending, **body.placing())
        answer = Answer(service, body, call, prompts, model, params.skip_special_tokens)
        exchange.fields |= {"model": model, "stream": body.streams}
        if body.streams:
            return EventStream(events(call, answer.chunks, answer.last))
        with call:
            return JsonReply(await unless_gone(request, answer.whole()))
    except BaseException:
        call.close()
        raise


@dataclass
class Choice:
    """One completion as it grows; `text` and `logprobs` are kept for the whole reply only."""

    index: int
    prompt: Prompt
    logprobs: TextLogprobBuilder | None
    begun: bool = False
    length: int = 0  # characters of text so far
    parts: list[CompletionChoice] = field(default_factory=list)


class Answer:
    """Turns the news of a call into the reply or into its chunks."""

    def __init__(
        self,
        service: Service,
        body: CompletionRequest,
        call: Call,
        prompts: list[Prompt],
        model: str,
        skips_special: bool = True,
    ) -> None:
        self._skips_special = skips_special
        self._service, self._body, self._call, self._prompts = service, body, call, prompts
        self._n = body.n or 1
        self._head: dict[str, Any] = {
            "id": f"cmpl-{call.exchange.id}",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": service.fingerprint,
        }
        self._choices = [self._choice(index) for index in range(len(prompts) * self._n)]
        self._prompt_positions: dict[int, list[Any]] = {}

    def _choice(self, index: int) -> Choice:
        prompt, count = self._prompts[index // self._n], self._body.logprobs
        if count is None:
            return Choice(index, prompt, None)
        texts, as_ids = self._service.texts, self._body.return_tokens_as_token_ids
        builder = TextLogprobBuilder(texts, count, prompt.ids, self._skips_special, as_ids)
        return Choice(index, prompt, builder)

    async def whole(self) -> Completion:
        """The reply, when everything has ended."""
        async for news in self._call.news():
            for number, delta in news:
                for part in self._parts(number, delta):
                    self._choices[part.index].parts.append(part)
        choices = [joined(choice.parts) for choice in self._choices]
        return Completion(
            **self._head, choices=choices, usage=self._call.usage(), saccade=self._call.extras()
        )

    def chunks(self, number: int, delta: Delta) -> list[Completion]:
        """What a delta adds to the stream."""
        options = self._body.stream_options
        usage: Any = UNSET
        if options is not None and options.include_usage:
            usage = self._call.usage() if options.continuous_usage_stats else None
        return [
            Completion(**self._head, choices=[part], usage=usage)
            for part in self._parts(number, delta)
        ]

    def last(self) -> list[Completion]:
        """The chunk behind all others, if usage was asked for."""
        options = self._body.stream_options
        if options is None or not options.include_usage:
            return []
        usage, extras = self._call.usage(), self._call.extras()
        return [Completion(**self._head, choices=[], usage=usage, saccade=extras)]

    # ---- parts of choices ----

    def _parts(self, number: int, delta: Delta) -> list[CompletionChoice]:
        if delta.prompt_logprobs is not None:
            self._prompt_positions[number] = delta.prompt_logprobs
        return [self._part(number, piece) for piece in delta.pieces]

    def _part(self, number: int, piece: Piece) -> CompletionChoice:
        choice = self._choices[number * self._n + piece.index]
        first, choice.begun = not choice.begun, True
        part = CompletionChoice(
            index=choice.index,
            text="",
            finish_reason=piece.finish,
            stop_reason=piece.stop,
        )
        if choice.logprobs is not None:
            part.logprobs = TextLogprobs([], [], [], [])
        if first:
            self._add_prompt(number, choice, part)
        if self._body.max_tokens == 0:  # only the prompt was wanted; the engine cannot do without
            part.finish_reason = "length" if piece.finish else None
        else:
            part.text += piece.text
            if choice.logprobs is not None and part.logprobs is not None:
                built = choice.logprobs.build(piece.tokens, piece.logprobs or [])
                extend(part.logprobs, built)
        choice.length += len(part.text)
        if piece.finish and part.logprobs is not None:
            clamp(part.logprobs, choice.length)
        if self._body.return_token_ids:
            part.token_ids = [] if self._body.max_tokens == 0 else piece.tokens
        return part

    def _add_prompt(self, number: int, choice: Choice, part: CompletionChoice) -> None:
        """What only the first part of a choice has."""
        known, prompt = self._prompt_positions.get(number), choice.prompt
        if self._body.echo:
            part.text = self._prompt_text(prompt)
            if choice.logprobs is not None:
                ids, positions = (prompt.ids, known) if known is not None else ([], [])
                part.logprobs = choice.logprobs.echo(ids, positions, part.text, prompt.text)
        if self._body.prompt_logprobs is not None and known is not None:
            part.prompt_logprobs = prompt_logprobs(self._service.texts, known)
        if self._body.return_token_ids:
            part.prompt_token_ids = prompt.ids

    def _prompt_text(self, prompt: Prompt) -> str:
        if prompt.text is not None:
            return prompt.text
        tokenizer = self._service.prompts.tokenizer
        return "" if tokenizer is None else tokenizer.decode(prompt.ids, self._skips_special)


def joined(parts: list[CompletionChoice]) -> CompletionChoice:
    """A choice of the whole reply, out of what would have been its chunks."""
    first, last = parts[0], parts[-1]
    whole = CompletionChoice(
        index=first.index,
        text="".join(part.text for part in parts),
        finish_reason=last.finish_reason,
        stop_reason=last.stop_reason,
        prompt_logprobs=first.prompt_logprobs,
        prompt_token_ids=first.prompt_token_ids,
    )
    if first.logprobs is not None:
        whole.logprobs = TextLogprobs([], [], [], [])
        for part in parts:
            if part.logprobs is not None:
                extend(whole.logprobs, part.logprobs)
        clamp(whole.logprobs, len(whole.text))
    if first.token_ids is not UNSET:
        whole.token_ids = [token for part in parts for token in part.token_ids or ()]
    return whole
