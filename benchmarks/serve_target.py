"""The server that a benchmark loads: one that runs already, or one of our own for as long as that.

The model `random` is a small Llama with random weights whose context holds the long prompt, and
which attends to it by MoBA: only its speed means something.
"""

from __future__ import annotations

import argparse
import os
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..engine.errors import RequestError
from .http_client import Target, ask
from .llama_checkpoint import LlamaSize, write_llama
from .options import progress
from .serve_load import Load, Shape
from .serve_server import Server

KEYS = ("SACCADE_API_KEY", "OPENAI_API_KEY")
RANDOM = "random"
ROOM = 64  # tokens of an answer to the long prompt, and something to spare
_SIZE = LlamaSize(4, 256, 768, 4, 2, 4096, moba=(512, 8))


def model_of(args: argparse.Namespace, mode: str) -> str:
    """What a server of our own serves."""
    default = RANDOM if mode == "long" else "demo"
    return str(args.model or default)


@contextmanager
def target_of(args: argparse.Namespace, mode: str) -> Iterator[tuple[Target, Server | None]]:
    """The server to load; one of our own is ended afterwards."""
    key = args.api_key or next((os.environ[name] for name in KEYS if os.environ.get(name)), None)
    headers = {"authorization": bearer(key)} if key else {}
    if args.url:
        try:
            target = Target.of(args.url, headers)
        except ValueError as error:
            raise RequestError(f"--url: {error}", "url") from error
        yield target, None
        return
    with checkpoint(model_of(args, mode), args.long_tokens) as (model, options):
        progress(f"starting saccade serve {model}")
        with Server(model, [*options, *shlex.split(args.serve_args)]) as server:
            yield Target.of(server.url, headers), server


def bearer(key: str) -> bytes:
    """A key as a header's value, which a server reads as UTF-8. RequestError."""
    if not key.isprintable() or key != key.strip():
        message = f"--api-key {key!r} cannot be sent: it holds more than letters and signs"
        raise RequestError(message, "api_key")
    return f"Bearer {key}".encode()


@contextmanager
def checkpoint(model: str, long_tokens: int) -> Iterator[tuple[str, list[str]]]:
    """The model as `saccade serve` takes it, and options that belong to it; a random one is removed
    afterwards.
    """
    if model != RANDOM:
        yield model, []
        return
    with tempfile.TemporaryDirectory(prefix="saccade-bench-") as folder:
        progress("writing a checkpoint with random weights")
        size = replace(_SIZE, max_position=long_tokens + ROOM)
        yield str(write_llama(Path(folder), size)), ["--served-model-name", RANDOM]


async def load_of(args: argparse.Namespace, target: Target) -> Load:
    """What to send. RequestError when no server is there, or none with a model of this name."""
    models = await models_of(target)
    name = args.served_model_name or next(iter(models))
    if name not in models:
        raise RequestError(f"the server has {', '.join(models)}, not {name}", "served_model_name")
    shape = Shape(args.input_tokens, args.output_tokens, args.text)
    most = models[name].get("max_model_len")
    return Load(target, name, shape, args.seed, most, args.timeout)


async def models_of(target: Target) -> dict[str, dict[str, Any]]:
    """What a server says of its models, by name; one at least. RequestError."""
    where = f"{target.url}/v1/models"
    try:
        reply = await ask(target, "/v1/models")
    except ConnectionRefusedError as error:
        raise RequestError(f"--url: nobody listens at {target.url}", "url") from error
    except TimeoutError as error:
        raise RequestError(f"--url: {where} does not answer", "url") from error
    except OSError as error:
        raise RequestError(f"--url: cannot reach {target.url}: {error}", "url") from error
    if reply.status != 200:
        said = f"status {reply.status}: {reply.body[:200]!r}" if reply.status else "no HTTP reply"
        raise RequestError(f"--url: {where}: {said}", "url")
    try:
        models = {each["id"]: each for each in reply.json["data"]}
        if not models:
            raise ValueError
    except (ValueError, KeyError, TypeError) as error:
        message = f"--url: {where} is no list of models: {reply.body[:200]!r}"
        raise RequestError(message, "url") from error
    return models
