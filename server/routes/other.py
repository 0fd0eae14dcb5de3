"""The small routes: models, tokens, health, version, abort."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from ... import __version__
from ..client import State
from ..exchange import JsonReply, exchange_of, read_body, unless_gone
from ..protocol.errors import ApiError, in_words_of
from ..protocol.other import (
    AbortReply,
    AbortRequest,
    DetokenizeReply,
    DetokenizeRequest,
    HealthReply,
    Model,
    ModelList,
    TokenizeReply,
    TokenizeRequest,
    VersionReply,
)
from ..service import Service, service_of


async def models(request: Request) -> Response:
    """Lists the names of the model."""
    service = service_of(request)
    return JsonReply(ModelList(data=[_model(service, name) for name in service.names]))


async def model(request: Request) -> Response:
    """Describes the model under one of its names."""
    service = service_of(request)
    return JsonReply(_model(service, service.model_name(request.path_params["model"])))


def _model(service: Service, name: str) -> Model:
    info = service.client.info
    return Model(
        id=name,
        created=service.created,
        root=service.names[0],
        max_model_len=info.max_model_len if info else None,
        attention=info.attention if info else None,
        has_chat_template=service.has_chat_template,
    )


async def tokenize(request: Request) -> Response:
    """Counts and lists the tokens of a text or of a chat."""
    service = service_of(request)
    body = await read_body(request, TokenizeRequest)
    service.model_name(body.model)
    info = service.engine_info()
    if (body.prompt is None) == (body.messages is None):
        raise ApiError(400, "give either prompt or messages", "prompt", "invalid_value")
    if body.prompt is not None:
        special = body.add_special_tokens is not False
        ids = await unless_gone(request, service.prompts.encode(body.prompt, special))
    else:
        goes_on = bool(body.continue_final_message)
        add = not goes_on if body.add_generation_prompt is None else body.add_generation_prompt
        rendered = service.prompts.render(
            body.messages or [],
            body.add_special_tokens is True,
            tools=body.tools,
            add_generation_prompt=add,
            continue_final_message=goes_on,
            kwargs=body.chat_template_kwargs,
        )
        ids = (await unless_gone(request, rendered)).ids
    texts = None
    if body.return_token_strs:
        texts = await unless_gone(request, service.prompts.names_of(ids, service.texts))
    return JsonReply(
        TokenizeReply(
            count=len(ids), max_model_len=info.max_model_len, tokens=ids, token_strs=texts
        )
    )


async def detokenize(request: Request) -> Response:
    """Writes token ids out as text."""
    service = service_of(request)
    body = await read_body(request, DetokenizeRequest)
    service.model_name(body.model)
    vocabulary = service.engine_info().vocab_size
    work = service.prompts.decode(body.tokens, vocabulary, bool(body.skip_special_tokens))
    try:
        text = await unless_gone(request, work)
    except ApiError as error:
        raise in_words_of(error, {"prompt": "tokens"}) from None
    return JsonReply(DetokenizeReply(text))


async def live(request: Request) -> Response:
    """Whether the HTTP process answers."""
    return JsonReply(HealthReply(status="alive", restarts=service_of(request).client.restarts))


async def health(request: Request) -> Response:
    """Whether the engine works: 503 while it is loaded, restarted, or gone for good."""
    client = service_of(request).client
    status = 200 if client.state is State.READY else 503
    return JsonReply(HealthReply(status=client.state.value, restarts=client.restarts), status)


async def ready(request: Request) -> Response:
    """Whether a request that comes now is taken: besides, 503 while the server drains."""
    service = service_of(request)
    draining = service.draining and service.client.state is State.READY
    word = "draining" if draining else service.client.state.value
    reply = HealthReply(status=word, restarts=service.client.restarts)
    return JsonReply(reply, 200 if service.ready else 503)


async def version(request: Request) -> Response:
    """The version of Saccade."""
    return JsonReply(VersionReply(__version__))


async def abort(request: Request) -> Response:
    """Ends requests by their id; their clients get what there is, with the reason "abort"."""
    service = service_of(request)
    body = await read_body(request, AbortRequest)
    owner = exchange_of(request).owner
    counts = (service.abort(name, owner) for name in names_of(body.request_id))
    return JsonReply(AbortReply(next(filter(None, counts), 0)))


def names_of(id: str) -> list[str]:
    """What may be meant by an id: a request's own, which its client may have chosen, or a reply's,
    which has one word in front of it.
    """
    replies = ("chatcmpl-", "cmpl-", "resp_")
    return [id, *[id.removeprefix(word) for word in replies if id.startswith(word)]]
