"""The specification is true: schemathesis asks by it, and also what it forbids."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from .conftest import Serve
from .running import Running, completion, streamed

# 400 is a right answer to a valid body whose fields contradict each other, which no schema says.
UNUSED = "positive_data_acceptance"


def schemathesis(server: Running, folder: Path, *options: str) -> None:
    """Runs it to its end; what it finds is printed."""
    argv = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json"]
    argv += ["--seed", "1", "--mode", "all", "--no-color", "--continue-on-failure"]
    argv += ["--suppress-health-check", "all", "--exclude-checks", UNUSED, *options]
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert server.http.get("/health").json() == {"status": "ready", "restarts": 0}
    wrong = [line for line in server.lines() if "traceback" in line]
    assert not wrong


def test_schemathesis_finds_nothing(serve: Serve, tmp_path: Path) -> None:
    server = serve("--max-model-len", "64")
    schemathesis(server, tmp_path, "--phases", "fuzzing", "--max-examples", "8")


@pytest.mark.slow
def test_schemathesis_finds_nothing_for_long(serve: Serve, tmp_path: Path) -> None:
    server = serve("--max-model-len", "64")
    phases = "examples,coverage,fuzzing,stateful"
    schemathesis(server, tmp_path, "--phases", phases, "--max-examples", "100")


@pytest.fixture(scope="module")
def document(server: Running) -> Any:
    return server.http.get("/openapi.json").json()


def shape(document: Any, name: str) -> Any:
    """One struct's schema, with the others within reach."""
    return {"$ref": f"#/components/schemas/{name}", "components": document["components"]}


def test_replies_and_chunks_are_as_described(server: Running, document: Any) -> None:
    body = {"prompt": "def add", "logprobs": 2, "echo": True, "prompt_logprobs": 1, "n": 2}
    jsonschema.validate(completion(server, **body), shape(document, "Completion"))
    for chunk in streamed(server, "/v1/completions", {**body, "return_token_ids": True}):
        jsonschema.validate(chunk, shape(document, "Completion"))
    chat: Any = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, "logprobs": True}
    reply = server.http.post("/v1/chat/completions", json={**chat, "top_logprobs": 2})
    jsonschema.validate(reply.json(), shape(document, "ChatCompletion"))
    for chunk in streamed(server, "/v1/chat/completions", chat):
        jsonschema.validate(chunk, shape(document, "ChatChunk"))


def test_what_is_served_is_allowed(serve: Serve, tmp_path: Path) -> None:
    """Of a token that begins every prompt, and a template that takes any role."""
    template = tmp_path / "any.jinja"
    template.write_text("{% for each in messages %}{{ each.role }}: {{ each.content }}{% endfor %}")
    options = ("--max-model-len", "64", "--chat-template", str(template))
    server = serve(*options, model="demo")
    document = server.http.get("/openapi.json").json()
    refusal = [{"type": "refusal", "refusal": "no"}]
    known = [{"type": "reasoning_text", "text": "hm"}, {"type": "text", "text": "b"}]
    chats = [
        {"messages": [{"role": "poet", "content": "a"}], "max_tokens": 2},
        {"messages": [{"role": "user", "content": refusal}], "max_tokens": 2, "top_logprobs": 0},
    ]
    items = [{"role": "user", "content": refusal}, {"role": "assistant", "content": known}]
    cases: dict[str, list[dict[str, Any]]] = {
        "completions": [{"prompt": "", "max_tokens": 2}],
        "embeddings": [{"input": ""}, {"input": ["a", ""]}],
        "chat/completions": chats,
        "responses": [{"input": each, "max_output_tokens": 2} for each in ("", items)],
    }
    for path, bodies in cases.items():
        content = document["paths"][f"/v1/{path}"]["post"]["requestBody"]["content"]
        schema = {**content["application/json"]["schema"], "components": document["components"]}
        for body in bodies:
            jsonschema.validate(body, schema)
            reply = server.http.post(f"/v1/{path}", json=body)
            assert reply.status_code == 200, reply.text


def test_every_route_is_in_it_and_answers(server: Running, document: Any) -> None:
    paths = document["paths"]
    assert {"/v1/completions", "/v1/chat/completions", "/v1/models", "/metrics"} <= set(paths)
    for path, methods in paths.items():
        for method, operation in methods.items():
            assert operation["summary"] and operation["operationId"]
            url = path.replace("{model}", "tiny")
            assert server.http.request(method.upper(), url, json={}).status_code in (200, 400)
    names = document["components"]["schemas"]
    hidden = {"use_beam_search", "suffix", "audio", "functions"}
    for name in ("CompletionRequest", "ChatRequest"):
        assert not hidden & set(names[name]["properties"])
        assert names[name]["properties"]["model"]["enum"] == ["tiny", "alias/of-it", None]
        assert names[name]["properties"]["n"]["maximum"] == 128
