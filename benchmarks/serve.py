"""`saccade bench serve`: load on a server that speaks OpenAI's API, and what its clients feel."""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..engine.errors import RequestError
from . import machine, options, report, serve_modes, serve_overhead
from .http_client import Target, ask
from .options import check_outputs, positive, progress
from .serve_load import Load, Shape
from .serve_server import Server

_KEYS = ("SACCADE_API_KEY", "OPENAI_API_KEY")
MODES = {
    "load": "so many at once (--concurrency), or arrivals at random (--rate)",
    "long": "time to first token of short requests while one long prompt is read",
    "overhead": "time between tokens for clients, beside the engine's own step time",
}
RUN = {"load": serve_modes.load, "long": serve_modes.long, "overhead": serve_overhead.overhead}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write what was asked for. RequestError for unusable options."""
    args = parser().parse_args(argv)
    check_outputs(args)
    here = machine.describe()
    with target_of(args) as target:
        load = asyncio.run(load_of(args, target))
        progress(f"{target.host}:{target.port}, model {load.model}")
        found = RUN[args.mode](args, load)
    title = f"saccade bench serve --mode {args.mode}" + " --quick (not for a record)" * args.quick
    head = report.head(title, machine.today(), here, machine.versions())
    head.append(f"{load.model}: {load.shape.line()}")
    report.show(head, found.tables)
    document: dict[str, Any] = {
        "benchmark": "serve",
        "mode": args.mode,
        "date": machine.today(),
        "quick": args.quick,
        "machine": here,
        "versions": machine.versions(),
        "model_id": load.model,
        "shape": load.shape,
        **found.document,
    }
    plain = report.plain(head, found.tables)
    options.write_outputs(args, "serve", document, plain, found.plot)
    return 0


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(
        prog="saccade bench serve",
        description="Load on an OpenAI-compatible server: time to first token, between tokens, "
        "and to the end; throughput. Without --url a server is started for it.",
    )
    made.add_argument("--url", help="a running server, such as http://127.0.0.1:8000")
    made.add_argument("--model", default="demo", metavar="PATH", help="what to serve without --url")
    made.add_argument(
        "--serve-args", default="", metavar="'...'", help="options of `saccade serve` without --url"
    )
    made.add_argument("--served-model-name", metavar="NAME", help="default: the server's first")
    made.add_argument("--api-key", metavar="KEY", help=f"default: ${' or $'.join(_KEYS)}")
    texts = "; ".join(f"{name}: {text}" for name, text in MODES.items())
    made.add_argument("--mode", choices=tuple(MODES), default="load", help=texts)
    made.add_argument("--requests", type=positive, metavar="N", help="of each run (default 64)")
    made.add_argument("--concurrency", metavar="N,N", help="requests at once (default 8)")
    made.add_argument("--rate", metavar="X,X", help="requests a second, arriving at random")
    made.add_argument("--input-tokens", type=positive, default=128, metavar="N")
    made.add_argument("--output-tokens", type=positive, default=64, metavar="N")
    made.add_argument(
        "--long-tokens", type=positive, default=131072, metavar="N", help="--mode long"
    )
    made.add_argument("--text", action="store_true", help="prompts of words and not of token ids")
    made.add_argument(
        "--goodput-ttft-ms", type=float, metavar="X", help="counts as good below this"
    )
    made.add_argument(
        "--goodput-itl-ms", type=float, metavar="X", help="the same, mean of a request"
    )
    made.add_argument("--rounds", type=positive, default=3, help="--mode overhead")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--quick", action="store_true", help="little of everything: a look")
    options.add_common(made)
    return made


@contextmanager
def target_of(args: argparse.Namespace) -> Iterator[Target]:
    """The server to load; one of our own is ended afterwards."""
    key = args.api_key or next((os.environ[name] for name in _KEYS if os.environ.get(name)), None)
    headers = {"authorization": f"Bearer {key}"} if key else {}
    if args.url:
        try:
            target = Target.of(args.url, headers)
        except ValueError as error:
            raise RequestError(f"--url: {error}", "url") from error
        try:
            yield target
        except ConnectionRefusedError as error:
            raise RequestError(f"--url: nobody listens at {args.url}", "url") from error
        return
    progress(f"starting saccade serve {args.model}")
    with Server(args.model, shlex.split(args.serve_args)) as server:
        yield Target.of(server.url, headers)


async def load_of(args: argparse.Namespace, target: Target) -> Load:
    """What to send. RequestError when the server has no model of this name."""
    reply = await ask(target, "/v1/models")
    if reply.status != 200:
        raise RequestError(f"/v1/models: status {reply.status}: {reply.body[:200]!r}", "url")
    models = {each["id"]: each for each in reply.json["data"]}
    name = args.served_model_name or next(iter(models))
    if name not in models:
        raise RequestError(f"the server has {', '.join(models)}, not {name}", "served_model_name")
    shape = Shape(args.input_tokens, args.output_tokens, args.text)
    return Load(target, name, shape, args.seed, models[name].get("max_model_len"))


def numbers(text: str, option: str) -> list[float]:
    """Positive numbers out of `1,2,4`. RequestError."""
    try:
        found = [float(word) for word in options.words([text])]
    except ValueError:
        found = []
    if not found or not all(0 < each < float("inf") for each in found):
        raise RequestError(f"--{option} must be positive numbers, not {text!r}", option)
    return found
