"""/v1/embeddings with the official client."""

from __future__ import annotations

import base64
import json
import math
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest

from saccade.engine.engine import Engine
from saccade.engine.errors import CheckpointError
from saccade.server.defaults import read_pooling

from .running import Running

IDS = [[40, 41, 42], list(range(50, 120))]


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def vectors(client: openai.OpenAI, **more: Any) -> list[list[float]]:
    reply = client.embeddings.create(**{"model": "tiny", "input": IDS} | more)
    assert [each.index for each in reply.data] == list(range(len(reply.data)))
    return [each.embedding for each in reply.data]


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_they_are_the_engines(client: openai.OpenAI, tiny: Path, pooling: str) -> None:
    with Engine(tiny, page_size=16, kv_cache_memory=8 << 20) as engine:
        expected = [each.tolist() for each in engine.embed(IDS, pooling=pooling, normalize=True)]
    assert vectors(client, extra_body={"pooling": pooling}) == expected
    floats = vectors(client, extra_body={"pooling": pooling}, encoding_format="float")
    assert floats == expected
    if pooling == "last":  # where neither the client nor the checkpoint says anything
        assert vectors(client) == expected


def test_texts_and_usage(client: openai.OpenAI) -> None:
    one = client.embeddings.create(model="tiny", input="def add")
    two = client.embeddings.create(model="tiny", input=["def add", "return"])
    assert one.data[0].embedding == two.data[0].embedding != two.data[1].embedding
    assert one.usage.prompt_tokens == one.usage.total_tokens > 0
    assert two.usage.prompt_tokens > one.usage.prompt_tokens
    flat = client.embeddings.create(model="tiny", input=IDS[0])
    assert flat.data[0].embedding == vectors(client)[0] and flat.usage.prompt_tokens == 3
    many = client.embeddings.create(model="tiny", input=[[40 + i % 200] for i in range(600)])
    assert len(many.data) == 600 and many.data[0].embedding == many.data[200].embedding


def test_dimensions_and_length(client: openai.OpenAI, server: Running) -> None:
    whole = vectors(client, extra_body={"normalize": False})
    assert math.hypot(*whole[0]) > 1.5
    unit = vectors(client)
    assert math.hypot(*unit[0]) == pytest.approx(1, abs=1e-6)
    short = vectors(client, dimensions=16)
    scale = math.hypot(*unit[0][:16])
    assert short[0] == pytest.approx([value / scale for value in unit[0][:16]], abs=1e-6)
    body = {"input": IDS, "encoding_format": "base64"}
    data = server.http.post("/v1/embeddings", json=body).json()["data"]
    assert list(array("f", base64.b64decode(data[0]["embedding"]))) == unit[0]


def test_a_policy_of_ones_own_and_truncation(client: openai.OpenAI) -> None:
    narrow = vectors(client, extra_body={"attention": "window(size=16)"})
    assert narrow[0] == vectors(client)[0] and narrow[1] != vectors(client)[1]
    cut = vectors(client, input=[IDS[1]], extra_body={"truncate_prompt_tokens": 10})
    assert cut == vectors(client, input=[IDS[1][-10:]])


def test_the_longest_text(server: Running) -> None:
    """A place of the context is the engine's; the refusal says so, and of no answer."""
    for more in ({"input": [40] * 511}, {"input": [40] * 600, "truncate_prompt_tokens": -1}):
        reply = server.http.post("/v1/embeddings", json=more)
        assert reply.status_code == 200, reply.text
        assert reply.json()["usage"]["prompt_tokens"] == 511
    error = server.http.post("/v1/embeddings", json={"input": [40] * 512}).json()["error"]
    assert error["code"] == "context_length_exceeded" and error["param"] == "input"
    assert "at most 511 tokens" in error["message"] and "answer" not in error["message"]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"input": []}, "input"),
    ({"input": ""}, "input"),
    ({"input": [[]]}, "input"),
    ({"input": [320]}, "input"),
    ({"input": [1, "a"]}, "input"),
    ({"input": ["x"] * 2049}, "input"),
    ({"input": [40] * 600}, "input"),
    ({"input": {"text": "x"}}, "input"),
    ({"encoding_format": "int8"}, "encoding_format"),
    ({"dimensions": 0}, "dimensions"),
    ({"dimensions": 65}, "dimensions"),
    ({"pooling": "max"}, "pooling"),
    ({"attention": "nothing"}, "attention"),
    ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
    ({"cache_salt": ""}, "cache_salt"),
]


@pytest.mark.parametrize(("more", "param"), REFUSED, ids=range(len(REFUSED)))
def test_refusals(server: Running, more: dict[str, Any], param: str) -> None:
    reply = server.http.post("/v1/embeddings", json={"model": "tiny", "input": "x", **more})
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert error["param"] == param and "prompt must" not in error["message"], error


def test_the_reply_is_as_described(server: Running) -> None:
    document = server.http.get("/openapi.json").json()
    shape = {"$ref": "#/components/schemas/Embeddings", "components": document["components"]}
    for form in ("float", "base64"):
        body = {"input": IDS, "encoding_format": form}
        jsonschema.validate(server.http.post("/v1/embeddings", json=body).json(), shape)


def test_pooling_as_the_checkpoint_says(tmp_path: Path) -> None:
    assert read_pooling(tmp_path) == "last"
    path = tmp_path / "1_Pooling" / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"pooling_mode_mean_tokens": True, "word_embedding_dimension": 8}))
    assert read_pooling(tmp_path) == "mean"
    path.write_text(json.dumps({"pooling_mode_cls_token": True}))
    with pytest.raises(CheckpointError, match="pooling_mode_cls_token; known"):
        read_pooling(tmp_path)
