"""`saccade generate`: one prompt in, text out."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import EXIT_FAILED, EXIT_OK, UsageError
from ..options import ENGINE, SAMPLING, add_group, given, parse_size

if TYPE_CHECKING:
    from ...engine.engine import Engine
    from ...engine.outputs import RequestOutput
    from ...engine.params import SamplingParams


def add_parser(commands: Any) -> None:
    """Register the subcommand."""
    parser = commands.add_parser(
        "generate",
        help="continue a prompt",
        description="Continue a prompt, given as an option, in a file or on standard input.",
    )
    parser.add_argument("model", help="a checkpoint folder, or `demo` for the shipped one")
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("-p", "--prompt", metavar="TEXT", help="the prompt itself")
    prompt.add_argument("-f", "--prompt-file", metavar="PATH", help="a UTF-8 file that holds it")
    parser.add_argument(
        "--stream",
        action=argparse.BooleanOptionalAction,
        help="print text as it comes (default on a terminal)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print JSON (a line per piece if streamed)"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="no memory plan, no figures")
    add_group(parser, "sampling", SAMPLING)
    add_group(parser, "engine", ENGINE)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check everything cheap first, then load the model, generate and print."""
    prompt = read_prompt(args)
    params = sampling_params(args)
    stream = args.stream if args.stream is not None else sys.stdout.isatty() and not args.json
    if stream and params.n > 1 and not args.json:
        if args.stream:
            raise UsageError("--stream shows one completion; use --n 1, --json or --no-stream")
        stream = False
    with open_engine(args) as engine:
        if stream:
            last = print_stream(engine.stream(prompt, params), args.json)
        else:
            last = engine.generate(prompt, params)[0]
            print_whole(last, args.json)
    return finish(last, args.quiet or args.json)


def read_prompt(args: argparse.Namespace) -> str:
    """The prompt from its option, its file or standard input."""
    if args.prompt is not None:
        return str(args.prompt)
    try:
        if args.prompt_file is not None:
            return Path(args.prompt_file).read_text(encoding="utf-8")
        if sys.stdin.isatty():
            print("saccade: reading the prompt; end it with Ctrl-D", file=sys.stderr)
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"the prompt is not UTF-8 text: {error}") from error
    except OSError as error:
        raise UsageError(f"cannot read the prompt: {error}") from error


def sampling_params(args: argparse.Namespace) -> SamplingParams:
    """The sampling options; RequestError for a value out of range."""
    from ...engine.params import SamplingParams

    return SamplingParams(**given(args, SAMPLING))


def open_engine(args: argparse.Namespace) -> Engine:
    """Load the model; a value that the engine refuses is a usage error."""
    options = given(args, ENGINE)
    try:
        if "kv_cache_memory" in options:
            options["kv_cache_memory"] = parse_size(options["kv_cache_memory"])
        from ...engine.engine import Engine

        return Engine(args.model, verbose=not (args.quiet or args.json), **options)
    except ValueError as error:
        raise UsageError(str(error)) from error


def print_stream(pieces: Iterable[RequestOutput], as_json: bool) -> RequestOutput:
    """Print each piece as it comes and return the last one."""
    last = None
    for last in pieces:
        if as_json:
            print(json.dumps(asdict(last), ensure_ascii=False), flush=True)
        else:
            sys.stdout.write("".join(output.text for output in last.outputs))
            sys.stdout.flush()
    if last is None:
        raise UsageError("the engine produced nothing")
    if not as_json:
        print()
    return last


def print_whole(output: RequestOutput, as_json: bool) -> None:
    """Print a finished request: its text, or everything as one JSON object."""
    if as_json:
        print(json.dumps(asdict(output), ensure_ascii=False, indent=2))
        return
    for each in output.outputs:
        if len(output.outputs) > 1:
            print(f"--- completion {each.index + 1} ---")
        print(each.text)


def finish(last: RequestOutput, quiet: bool) -> int:
    """Say how it went on stderr, and return the exit status."""
    if last.error is not None or any(each.finish_reason == "error" for each in last.outputs):
        print(f"saccade: the request failed: {last.error}", file=sys.stderr)
        return EXIT_FAILED
    if not quiet:
        print(f"saccade: {figures(last)}", file=sys.stderr)
    return EXIT_OK


def figures(last: RequestOutput) -> str:
    """The closing line: prompt length, cached part, share of keys read, times, as far as known."""
    parts = [f"{len(last.prompt_token_ids)} prompt tokens"]
    if last.num_cached_tokens:
        parts.append(f"{last.num_cached_tokens} of them cached")
    for phase, reads in last.stats.get("attention", {}).items():
        if reads["share"] is not None and reads["share"] < 1:
            parts.append(f"{100 * reads['share']:.3g} % of the keys read in {phase}")
    times = last.timings
    for label, seconds in (("first token", times.ttft_s), ("total", times.total_s)):
        if seconds is not None:
            parts.append(f"{label} {seconds:.2f} s")
    return ", ".join(parts)
