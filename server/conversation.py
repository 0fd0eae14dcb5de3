"""A conversation on its way through the engine: from the client's fields to answers that are read.

/v1/chat/completions and /v1/responses differ in what they call things, and share this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ..engine.errors import RequestError
from . import reasoning
from .call import Call
from .exchange import Exchange
from .formats import Formats
from .messages import check_calls, content_text
from .prompts import Prompt, truncate
from .protocol.chat import ChatRequest
from .protocol.errors import ApiError, from_request_error
from .protocol.tools import ToolUse, name_of
from .reading import AnswerReader, News
from .reasoning import Begins
from .sampling import check_bias, check_lengths, sampling_params
from .service import Service
from .tools.choice import blame, forced_calls, guarded_calls
from .wire import Piece

if TYPE_CHECKING:
    from ..engine.params import SamplingParams
    from ..engine.structure import Structure


@dataclass
class Conversation:
    """A prompt in the engine, and a reader for each answer; whoever has it closes `call`."""

    call: Call
    prompt: Prompt
    model: str
    params: SamplingParams
    readers: list[AnswerReader]

    def read(self, piece: Piece) -> News:
        """What a piece of an answer brings; tokens of reasoning are counted for the usage."""
        reader = self.readers[piece.index]
        news = reader.push(piece.text, len(piece.tokens), last=piece.finish is not None)
        self.call.reasoning_tokens = sum(each.reasoning_tokens for each in self.readers)
        return news

    def finish(self, piece: Piece) -> str | None:
        """The reason why an answer ended, as clients know it.

        "tool_calls" promises arguments that can be read. Where a stop string, or the model itself,
        ends an answer within a call, the reason is "stop", as it is "length" where max_tokens does.
        What there is of that call stays one, as with OpenAI: a stream has told it already, and the
        whole reply shows what the stream does.
        """
        reader = self.readers[piece.index]
        called = piece.finish == "stop" and reader.num_calls > 0
        return "tool_calls" if called and reader.calls_are_whole else piece.finish


async def begin(service: Service, exchange: Exchange, body: ChatRequest) -> Conversation:
    """Checks everything, renders the prompt and hands it to the engine. ApiError."""
    body.check_fields()
    model, formats = service.model_name(body.model), service.formats
    use = body.tool_use()
    check_use(use, formats)
    if use is not None and not formats.many:
        use = replace(use, many=False)
    try:
        check_calls(body.messages)
    except RequestError as error:
        raise from_request_error(error) from None
    info = service.engine_info()
    check_bias(body.logit_bias, info.vocab_size)
    params = sampling_params(body.to_sampling, service.defaults, body.names)
    by_tools = use is not None and (bool(use.forced) or params.structure is None)
    names = body.names | ({"structure": "tools"} if by_tools else {})
    limits = service.config.limits
    limits.check_shape(1, params.n)
    params = limits.with_end(params, params.n)
    call = Call(service, exchange, params.n)
    try:
        special = body.add_special_tokens is True
        keep, limit = body.truncate_prompt_tokens, info.max_model_len

        def check(tokens: int, more: bool) -> None:
            check_lengths(tokens, body.output_limit, limit, "messages", more)

        prompt = await service.prompts.render(
            body.messages, special, check if keep is None else None, **body.rendering(use)
        )
        begins = beginning(body, prompt)
        prompt = truncate(prompt, keep, limit, body.output_limit)
        check_lengths(len(prompt.ids), body.output_limit, limit, "messages")
        limits.check_prompt_logprobs(len(prompt.ids), 1, params.prompt_logprobs)
        params = fitted(params, use, formats, begins, names)
        explain = partial(blamed, use=use, structure=params.structure)
        call.submit([prompt], params, **(body.placing() | {"names": names, "explain": explain}))
        exchange.fields |= {"model": model, "stream": body.streams}
    except BaseException:
        call.close()
        raise
    callable_names = () if use is None else use.names
    many, forced = use is None or use.many, use is not None and bool(use.forced)
    readers = [formats.reader(begins, callable_names, many, forced) for _ in range(params.n)]
    return Conversation(call, prompt, model, params, readers)


def check_use(use: ToolUse | None, formats: Formats) -> None:
    """Refuses tools where nobody could read the calls. ApiError."""
    if use is not None and formats.tools is None:
        message = (
            "tools: this model's chat template shows no format of calls that is known here; the "
            "server's option --tool-call-parser names one"
        )
        raise ApiError(400, message, "tools", "unsupported_parameter")


def blamed(error: ApiError, use: ToolUse | None, structure: Structure | None) -> ApiError:
    """A refusal of a form that holds tools, with the tool whose parameters are at fault."""
    if use is None or structure is None:
        return error
    names = [name_of(tool) for tool in use.forced or use.tools]
    message = blame(error.info.message, structure, names)
    return error if message is None else ApiError(error.status, message, "tools", error.info.code)


def beginning(body: ChatRequest, prompt: Prompt) -> Begins:
    """Where the answer begins, by the message that it continues, or else by the prompt."""
    last: Mapping[str, Any] = body.messages[-1] if body.messages else {}
    said = content_text(last.get("content")) if body.continue_final_message else ""
    return reasoning.continues(said) if said.strip() else reasoning.begins(prompt.text or "")


def fitted(
    params: SamplingParams,
    use: ToolUse | None,
    formats: Formats,
    begins: Begins,
    names: dict[str, str],
) -> SamplingParams:
    """The sampling with the form that tools and reasoning ask for. ApiError."""
    try:
        structure = params.structure
        if use is not None and use.forced and structure is not None:
            message = "a response format and a tool_choice that forces a call exclude each other"
            raise ApiError(400, message, "tool_choice", "invalid_value")
        if use is not None and formats.tools is not None:
            if use.forced or structure is not None:
                calls = forced_calls(formats.tools, use.forced or use.tools, use.many)
                structure = replace(calls, otherwise=structure)
            elif use.strict:
                structure = guarded_calls(formats.tools, use.tools, use.many)
        if structure is not None and formats.thinks and begins is not Begins.BEHIND:
            opening = reasoning.START if begins is Begins.BEFORE else ""
            structure = structure.behind(reasoning.END, opening)
    except RequestError as error:
        raise from_request_error(error, names) from None
    keeps = formats.keeps_special(calls=use is not None)
    skips = params.skip_special_tokens and not keeps
    return replace(params, structure=structure, skip_special_tokens=skips)
