"""Timings on the GPU of the engine's decode step: a Llama of 8B parameters with 128K tokens in its
pages, one sequence, from `Engine.step` to the token on the host.

The weights are random and made on the device. The prompt is read by the engine itself, with a
sparse method, which takes seconds where dense attention would take a minute; every request then
decodes by its own method from these pages.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from ..engine.attention.parse import parse_method
from ..engine.engine import Engine
from ..engine.generation import Generation
from ..engine.params import SamplingParams
from .gpu_rows import NOT_MEASURED, PAGE, Row, reason_of
from .llama_checkpoint import LlamaSize, weight_bytes
from .random_model import DTYPE, random_source

SIZE = LlamaSize(32, 4096, 14336, 32, 8, 128256, 131072 + 256, tied=False)
REQUEST_SECONDS = 50.0  # at most, of one prompt and its decode steps


@dataclass(frozen=True)
class Run:
    """What is measured. reading: how prompts are read; methods: how outputs attend; the last one
    keeps its summaries in all pages. chunk: tokens of a step of the prompt; warm: steps before
    those that count, of which the first computes and the second captures a graph. seconds: what a
    request may take.
    """

    size: LlamaSize
    context: int
    page: int
    chunk: int
    reading: str
    methods: tuple[str, ...]
    warm: int
    steps: int
    seconds: float

    @property
    def outputs(self) -> int:
        """Tokens of a request: the first comes with the prompt."""
        return 1 + self.warm + self.steps


METHODS = ("dense", "moba(128, 8)", "quest(budget=2048)")
TINY = Run(
    LlamaSize(1, 64, 96, 4, 2, 300, 512, tied=False),
    context=24,
    page=16,
    chunk=128,
    reading="moba(16, 2)",
    methods=("dense", "moba(16, 2)", "quest(budget=48, block=16)"),
    warm=1,
    steps=1,
    seconds=600.0,
)


def whole_run(context: int) -> Run:
    """The 8B shape with so many tokens in its pages."""
    return Run(SIZE, context, PAGE, 8192, METHODS[1], METHODS, 4, 64, REQUEST_SECONDS)


@dataclass(frozen=True)
class Played:
    """A request: seconds of its prompt and of every decode step, and of how many tokens K and V
    were read in a step, over all layers and as the mean over their heads.
    """

    prompt_s: float
    cached: int  # prompt tokens that were in the prefix cache
    keys: float
    step_s: list[float] = field(default_factory=list)


def step_rows(context: int, tiny: bool) -> Iterator[Row]:
    """A row for every method, sampled at temperature 1, and one of greedy dense decode."""
    run = TINY if tiny else whole_run(context)
    section = f"engine step {run.context}"
    free()
    with TemporaryDirectory(prefix="saccade-gpu-") as folder:
        engine = engine_of(run, Path(folder))
        try:
            for method in run.methods:
                yield _row(engine, run, section, method, tiny, 1.0)
                if method == "dense":
                    yield _row(engine, run, section, method, tiny, 0.0)
        finally:
            engine.close()
            del engine
            free()


def free() -> None:
    """Gives back to the device what earlier timings held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def engine_of(run: Run, folder: Path) -> Engine:
    """One sequence at a time; its pages hold what any of the methods needs."""
    return Engine(
        random_source(folder, run.size),
        device="cuda",
        max_model_len=run.context + run.outputs,
        max_num_seqs=1,
        max_num_batched_tokens=run.chunk,
        page_size=run.page,
        prefill_attention=run.reading,
        decode_attention=run.methods[-1],
    )


def _row(
    engine: Engine, run: Run, section: str, method: str, tiny: bool, temperature: float
) -> Row:
    case = method if temperature else f"{method}, greedy"
    before = replays(engine)
    try:
        played = play(engine, run, method, temperature)
    except Exception as error:  # noqa: BLE001 - e.g. a prompt that takes too long
        return Row(section, case, NOT_MEASURED, reason_of(error), failed=True)
    read, parts = step_bytes(engine, run, method, played.keys)
    if tiny:
        return Row(section, case, NOT_MEASURED, "dry run", read=read)
    took = 1e3 * median(played.step_s[run.warm :])
    note = [
        f"{1e3 / took:.1f} tokens/s",
        parts,
        how_read(run, played),
        f"{replays(engine) - before} of {len(played.step_s)} steps replayed",
        *refusals(engine),
        "random weights",
    ]
    return Row(section, case, f"{took:.4f} ms", "; ".join(note), took, read=read)


def play(engine: Engine, run: Run, method: str, temperature: float) -> Played:
    """One request of the run's prompt, its steps timed one by one.

    Raises RuntimeError where it fails, TimeoutError where it takes longer than it may.
    """
    same = torch.Generator().manual_seed(0)
    numbers = torch.randint(0, run.size.vocab, (run.context,), generator=same)
    wanted = SamplingParams(
        max_tokens=run.outputs,
        temperature=temperature,
        seed=1,
        ignore_eos=True,
        detokenize=False,
    )
    policy = {"prefill_attention": run.reading, "decode_attention": method}
    generation = engine.add(numbers.tolist(), wanted, attention=policy)
    request, times, prompt_s = generation.branches[0].request, [], 0.0
    begin = time.perf_counter()
    while not generation.finished:
        decodes, since = bool(request.output), time.perf_counter()
        if since - begin > run.seconds:
            done = request.num_computed
            engine.abort(generation.id)
            raise TimeoutError(f"{done} of {run.context} tokens after {since - begin:.0f} s")
        engine.step()
        took = time.perf_counter() - since
        if decodes:
            times.append(took)
        else:
            prompt_s += took
    if generation.error is not None:
        raise RuntimeError(generation.error)
    return Played(prompt_s, request.num_cached, keys_of(generation), times)


def keys_of(generation: Generation) -> float:
    """Keys that a decode step read, over all layers, as the engine has counted them."""
    counts = generation.reads.decode
    return counts.keys_read / max(counts.rows, 1)


def step_bytes(engine: Engine, run: Run, method: str, keys: float) -> tuple[float, str]:
    """What a decode step must read, and that in words: weights, K and V of `keys` tokens, and the
    method's summaries of the whole context.
    """
    config, element = engine.model_config, DTYPE.itemsize
    weights = weight_bytes(config, element)
    pairs = keys * 2 * config.num_kv_heads * config.head_dim * element
    pages = -(-run.context // run.page)
    fields = [
        each
        for shape in engine._runner.shapes
        for each in parse_method(method).fields(shape, run.page).values()
    ]
    summaries = pages * sum(
        torch.Size(each.shape).numel() * (each.dtype or DTYPE).itemsize for each in fields
    )
    parts = f"weights {weights / 1e9:.2f}, K and V {pairs / 1e9:.2f} GB"
    if summaries:
        parts += f", summaries {summaries / 1e9:.2f} GB"
    return weights + pairs + summaries, parts


def how_read(run: Run, played: Played) -> str:
    """How the prompt came into the pages."""
    if played.cached:
        return f"{played.cached} of {run.context} prompt tokens from the prefix cache"
    return f"{run.context} prompt tokens read by {run.reading} in {played.prompt_s:.1f} s"


def replays(engine: Engine) -> int:
    """Steps replayed as graphs so far."""
    graphs: Any = engine._runner.graphs
    return 0 if graphs is None else graphs.replays


def refusals(engine: Engine) -> list[str]:
    """Why steps were not captured."""
    graphs: Any = engine._runner.graphs
    return [] if graphs is None else graphs.refusals
