"""/v1/embeddings."""

from __future__ import annotations

import asyncio
import base64
from array import array

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ...engine.params import SamplingParams
from ..call import Call
from ..exchange import JSON, exchange_of, read_body, unless_gone
from ..prompts import split_prompts, truncate
from ..protocol.embeddings import Embedding, Embeddings, EmbeddingsRequest, EmbeddingsUsage
from ..protocol.errors import ApiError, in_words_of
from ..protocol.sampling import check_placing, check_truncation
from ..sampling import check_text, sampling_params
from ..service import service_of

_NAMES = {"prompt": "input"}


async def embeddings(request: Request) -> Response:
    """Makes a vector of each text."""
    service, exchange = service_of(request), exchange_of(request)
    service.check_room()
    body = await read_body(request, EmbeddingsRequest)
    model = service.model_name(body.model)
    try:
        info, keep = service.engine_info(), body.truncate_prompt_tokens

        def check(tokens: int, more: bool) -> None:
            if keep is None:
                check_text(tokens, info.max_model_len, more)

        items = split_prompts(body.input, service.config.limits.check_inputs, check)
        count = len(items)
        check_truncation(body.truncate_prompt_tokens)
        check_placing(body.cache_salt, body.priority)
        pooling = body.pooling or service.pooling
        with Call(service, exchange, count) as call:
            body.check_fields(info.hidden_size)
            params = sampling_params(
                lambda _: SamplingParams(
                    max_tokens=1, temperature=0, detokenize=False, pooling=pooling
                ),
                {},
            )
            special = body.add_special_tokens is not False
            limit = info.max_model_len
            reading = service.prompts.read(items, info.vocab_size, special, check)
            prompts = await unless_gone(request, reading)
            prompts = [truncate(each, keep, limit) for each in prompts]
            for prompt in prompts:
                check_text(len(prompt.ids), limit)
            call.counts_output = False
            call.submit(
                prompts,
                params,
                priority=body.priority or 0,
                cache_salt=body.cache_salt or "",
                attention=body.attention,
                names=_NAMES,
            )
            exchange.fields |= {"model": model, "inputs": count}
            vectors = await unless_gone(request, collect(call, count))
            if len(vectors) < count:
                raise service.aborted()
            usage = EmbeddingsUsage(call.prompt_tokens, call.prompt_tokens)
            content = await asyncio.to_thread(written, body, model, usage, vectors)
    except ApiError as error:
        raise in_words_of(error, _NAMES) from None
    return Response(content, media_type=JSON)


async def collect(call: Call, count: int) -> list[bytes]:
    """The vectors as the engine sends them, in the order of the texts; those of texts that were
    aborted are missing. ApiError.
    """
    found: dict[int, bytes] = {}
    async for news in call.news():
        for number, delta in news:
            if delta.vector is not None:
                found[number] = delta.vector
    return [found[number] for number in range(count) if number in found]


def written(
    body: EmbeddingsRequest, model: str, usage: EmbeddingsUsage, vectors: list[bytes]
) -> bytes:
    """The reply as JSON; slow for many long vectors."""
    data = []
    for index, packed in enumerate(vectors):
        vector = shaped(packed, body.dimensions, body.normalize is not False)
        if body.encoding_format == "base64":
            data.append(Embedding(index=index, embedding=base64.b64encode(vector).decode()))
        else:
            numbers: list[float] = list(array("f", vector))
            data.append(Embedding(index=index, embedding=numbers))
    return msgspec.json.encode(Embeddings(data=data, model=model, usage=usage))


def shaped(packed: bytes, dimensions: int | None, normalize: bool) -> bytes:
    """The first dimensions of a vector, with length 1 if wanted; float32 in and out."""
    import numpy as np

    from ...engine.pooling import normalized

    vector = np.frombuffer(packed, np.float32)[:dimensions]
    return (normalized(vector) if normalize else vector).tobytes()
