"""`saccade bench engine`: prefill and decode tokens per second by context, beside transformers."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from ..engine.checkpoint.config_json import ModelConfig, read_config
from ..engine.errors import RequestError
from . import engine_rows, machine, options, plots, report
from .llama_checkpoint import LlamaSize, write_llama
from .options import check_outputs, positive, progress
from .roofline import Ceiling, stream_ceiling
from .timing import Figure, interleave

STREAM_BYTES = 1 << 29
SHAPE = "135M"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write what was asked for. Raises RequestError for unusable options."""
    args = parser().parse_args(argv)
    check_outputs(args)
    plan = plan_of(args)
    with machine.using(args.isa, args.threads) as here, checkpoint(args, plan) as folder:
        progress(here.line())
        config = read_config(folder)
        check_length(plan, config)
        element = getattr(torch, config.dtype or "float32").itemsize
        stream = stream_ceiling(STREAM_BYTES >> (4 * args.quick))
        floor = engine_rows.Floor(config, element, stream)
        rows, peer_note = compare(args, plan, folder, floor)
        rate = stream_rate(stream)
    finish(args, here, plan, floor, rows, rate, peer_note)
    return 0


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(
        prog="saccade bench engine",
        description="Tokens per second of prefill and decode by context length, one sequence.",
    )
    made.add_argument(
        "--model",
        default=SHAPE,
        metavar="PATH",
        help="a checkpoint folder, `demo`, or 135M (default): the 135M-parameter Llama shape with "
        "random weights, written to a temporary folder",
    )
    made.add_argument("--contexts", metavar="N,N", help="default 1024,4096,16384")
    made.add_argument("--decode-tokens", type=positive, default=16, metavar="N")
    made.add_argument("--repeats", type=positive, default=3, help="rounds (default 3)")
    made.add_argument("--peer", choices=("transformers", "none"), default="transformers")
    made.add_argument(
        "--peer-max-context",
        type=positive,
        default=16384,
        metavar="N",
        help="no peer beyond this context (default 16384)",
    )
    made.add_argument(
        "--peer-from",
        metavar="N,N",
        help="beyond --peer-max-context, extrapolate the peer from these two contexts "
        "(two shorter ones, timed first)",
    )
    made.add_argument("--attention", metavar="SPEC", help="e.g. 'window(4096)'; default dense")
    made.add_argument("--prefill-attention", metavar="SPEC", help="of the prompt alone")
    made.add_argument("--decode-attention", metavar="SPEC", help="of generated tokens alone")
    made.add_argument(
        "--beside-dense",
        action="store_true",
        help="also our own engine with dense attention, in the same rounds",
    )
    made.add_argument(
        "--minutes",
        type=positive,
        metavar="N",
        help="leave out rounds that would not fit into this time, and say first how long one takes",
    )
    made.add_argument("--max-num-batched-tokens", type=positive, metavar="N")
    made.add_argument("--quick", action="store_true", help="a tiny model: a look, not a record")
    options.add_common(made)
    return made


def plan_of(args: argparse.Namespace) -> engine_rows.Plan:
    """The options as a plan; RequestError for contexts that are no positive integers."""
    contexts = lengths(
        "--contexts", args.contexts or ("64,256" if args.quick else "1024,4096,16384")
    )
    peer_from = lengths("--peer-from", args.peer_from) if args.peer_from else ()
    if peer_from and (len(peer_from) != 2 or peer_from[1] >= contexts[-1]):
        message = f"--peer-from must be two contexts shorter than {contexts[-1]}"
        raise RequestError(f"{message}, not {args.peer_from!r}", "peer_from")
    return engine_rows.Plan(
        contexts, args.decode_tokens, args.repeats, args.peer_max_context, peer_from, args.minutes
    )


def lengths(option: str, text: str) -> tuple[int, ...]:
    """Contexts in ascending order; RequestError for anything but positive integers."""
    parts = options.words([text])
    if not parts or not all(part.isdigit() and int(part) > 0 for part in parts):
        message = f"{option} must be positive integers, not {text!r}"
        raise RequestError(message, option.strip("-").replace("-", "_"))
    return tuple(sorted({int(part) for part in parts}))


@contextmanager
def checkpoint(args: argparse.Namespace, plan: engine_rows.Plan) -> Iterator[Path]:
    """The folder of the model to measure; a random one is removed afterwards, and has positions for
    the longest run.
    """
    if args.model != SHAPE:
        demo = Path(str(files("saccade.engine"))) / "demo"
        yield demo if args.model == "demo" else Path(args.model)
        return
    size = LlamaSize.tiny() if args.quick else LlamaSize()
    if not args.quick:
        size = replace(size, max_position=max(size.max_position, longest(plan)))
    with tempfile.TemporaryDirectory(prefix="saccade-bench-") as folder:
        progress("writing a checkpoint with random weights")
        yield write_llama(Path(folder), size)


def check_length(plan: engine_rows.Plan, config: ModelConfig) -> None:
    """RequestError when the model has no position for the longest run."""
    needed = longest(plan)
    if needed > config.max_position:
        message = f"--contexts: {needed} tokens exceed the model's {config.max_position} positions"
        raise RequestError(message, "contexts")


def longest(plan: engine_rows.Plan) -> int:
    """Tokens of the longest sequence of a run."""
    return plan.contexts[-1] + plan.steps + 1


def compare(
    args: argparse.Namespace, plan: engine_rows.Plan, folder: Path, floor: engine_rows.Floor
) -> tuple[list[engine_rows.EngineRow], str]:
    """The rows, and why there is no peer ("" when there is one)."""
    from .engine_subjects import Ours, Subject, Transformers, has_transformers

    names = ("attention", "prefill_attention", "decode_attention", "max_num_batched_tokens")
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    ours = Ours(str(folder), longest(plan), given)
    both = [ours, ours.dense()] if args.beside_dense else [ours]
    peer: Subject | None = None
    note = "transformers: not measured (--peer none)"
    if args.peer == "transformers" and not has_transformers():
        note = "transformers: not measured, it is not installed (pip install 'saccade[bench]')"
    elif args.peer == "transformers":
        peer = Transformers(folder, getattr(torch, floor.config.dtype or "float32"))
        note = ""
    with ours.engine:
        return engine_rows.measure(plan, both, peer, floor, progress), note


def stream_rate(stream: Ceiling) -> float:
    """Bytes per second of the streaming read."""
    samples = interleave({stream.name: stream.run}, 7)
    return stream.work.bytes / Figure.of(samples[stream.name]).value


def finish(
    args: argparse.Namespace,
    here: machine.Machine,
    plan: engine_rows.Plan,
    floor: engine_rows.Floor,
    rows: list[engine_rows.EngineRow],
    rate: float,
    peer_note: str,
) -> None:
    """Tables on stdout and whatever files were asked for."""
    standard = args.model == SHAPE and not args.quick
    reached = engine_rows.goals(rows, standard, attention(args) != "dense")
    model = model_line(args, floor.config)
    read = f"streaming read: {rate / 1e9:.3g} GB/s"
    title = "saccade bench engine" + " --quick (not for a record)" * args.quick
    head = report.head(title, machine.today(), here, machine.versions())
    head += [model, read, *[peer_note] * bool(peer_note)]
    tables = [engine_rows.table(rows, plan, floor, rate), report.goal_table(reached, here)]
    report.show(head, tables)
    document: dict[str, Any] = {
        "benchmark": "engine",
        "date": machine.today(),
        "quick": args.quick,
        "machine": here,
        "versions": machine.versions(),
        "model": model,
        "plan": plan,
        "stream_bytes_per_second": rate,
        "rows": rows,
        "goals": reached,
        "peer": peer_note or args.peer,
    }
    floors = {c: rate / floor.step_bytes(c + plan.steps // 2) for c in plan.contexts}
    options.write_outputs(
        args,
        "engine",
        document,
        report.plain(head, tables),
        lambda path: plots.engine(rows, floors, f"{model}\n{here.line()}", path),
    )


def model_line(args: argparse.Namespace, config: ModelConfig) -> str:
    """The model in one line: its shape and where its weights come from."""
    source = "demo checkpoint" if args.model == "demo" else "checkpoint"
    source = "random weights" if args.model == SHAPE else source
    return (
        f"{source}: {config.num_layers} layers, {config.hidden_size} wide, "
        f"{config.num_heads}/{config.num_kv_heads} heads of {config.head_dim}, "
        f"vocabulary {config.vocab_size}, {config.dtype or 'float32'}, "
        f"attention {attention(args)}"
    )


def attention(args: argparse.Namespace) -> str:
    """The attention specs in words."""
    both = args.attention or "dense"
    prefill, decode = args.prefill_attention or both, args.decode_attention or both
    return prefill if prefill == decode else f"{prefill} then {decode}"
