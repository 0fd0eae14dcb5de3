"""The law of cuts: chunks, neighbours, prefix hits, forks and preemption never change a bit.

Every row of logits that the engine computes, and everything it reports, is compared bitwise with
the same request alone in an engine that reads any prompt in one shot and caches no prefix.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from saccade import Engine, RequestOutput, SamplingParams
from saccade.engine.generation import Generation
from saccade.engine.pages import pages_for
from saccade.kernels import native

from .conftest import Checkpoints, check_idle
from .engine_probe import Recorder, Rows, bitwise, small_pool, some_tokens

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(
        native.chosen_isa() is None, reason="torch's own products round by batch size"
    ),
]

CASES: dict[str, tuple[str, dict[str, str]]] = {
    "dense": ("llama", {}),
    "window": ("llama", {"attention": "window(size=9, sinks=3)"}),
    "window_of_a_page": ("qwen3", {"attention": "window(size=16, sinks=0)"}),
    "chunked": ("llama", {"attention": "chunked(q_chunk=5, k_chunk=7)"}),
    "chunked_pages": ("qwen2", {"attention": "chunked(q_chunk=16, k_chunk=32)"}),
    "layers": ("llama_bias", {"attention": "0:window(size=5); 1:chunked(3, 11); *:dense"}),
    "phases": (
        "llama",
        {"prefill_attention": "window(size=8, sinks=2)", "decode_attention": "dense"},
    ),
    "phases_and_layers": (
        "smollm",
        {
            "prefill_attention": "0:chunked(4, 6); *:dense",
            "decode_attention": "2:window(size=6, sinks=1); *:chunked(2, 9)",
        },
    ),
    "dense_bf16": ("llama", {"dtype": "bfloat16"}),
    "mixed_bf16": (
        "qwen3_mixed",
        {
            "dtype": "bfloat16",
            "prefill_attention": "chunked(5, 6)",
            "decode_attention": "window(size=12, sinks=3)",
        },
    ),
    "layers_fp16": ("qwen3", {"dtype": "float16", "attention": "1:window(7, 2); *:chunked(8, 9)"}),
    "sliding": ("mistral", {}),
    "sliding_in_part": ("qwen3_mixed", {}),
    "sliding_chunked": ("qwen2_window", {"attention": "chunked(q_chunk=6, k_chunk=4)"}),
    "sliding_phases": (
        "qwen3_mixed",
        {"prefill_attention": "chunked(7, 5)", "decode_attention": "window(size=12)"},
    ),
    "moba": ("llama", {"attention": "moba(block=16, topk=2)"}),
    "moba_wide": ("qwen3", {"attention": "moba(block=32, topk=2)", "dtype": "bfloat16"}),
    "delta": (
        "llama",
        {
            "prefill_attention": "delta(window=9, sinks=2, gamma=4)",
            "decode_attention": "window(size=20, sinks=2)",
        },
    ),
    "delta_moba": (
        "qwen2",
        {
            "prefill_attention": "delta(gamma=8, mode=paper, base=moba, block=16, topk=2)",
            "decode_attention": "moba(block=16, topk=2)",
        },
    ),
    "quest": ("llama", {"decode_attention": "quest(budget=48, block=16)"}),
    "quest_sum": (
        "qwen3",
        {
            "dtype": "bfloat16",
            "prefill_attention": "moba(block=16, topk=2)",
            "decode_attention": "0:dense; *:quest(budget=48, block=16, reduction=sum)",
        },
    ),
    "lessismore": (
        "llama",
        {"decode_attention": "lessismore(budget=48, start=0, correction=9, recent=0.5)"},
    ),
    "lessismore_mean": (
        "qwen3",
        {
            "dtype": "bfloat16",
            "prefill_attention": "window(size=20, sinks=2)",
            "decode_attention": "lessismore(64, 16, 0, 1, 20, 0.6, mean_prob)",
        },
    ),
    "tidal": ("smollm", {"decode_attention": "tidal(budget=48, start=1, correction=0)"}),
    "asa": ("asa", {"attention": "asa(16, 3, 1, 1, reuse=4)"}),
    "asa_wide": ("asa_wide", {"attention": "asa(32, 2, 0, 1, form=expanded)"}),
    "asa_phases": (
        "asa",
        {
            "dtype": "bfloat16",
            "prefill_attention": "asa(16, 3, 1, 1, reuse=4, form=expanded)",
            "decode_attention": "asa(16, 3, 1, 1, reuse=4, form=absorbed)",
        },
    ),
}
ALIGNED = {"delta": 4, "delta_moba": 8}  # tokens in a chunk of the prompt are a multiple of
PHASES = {"prefill_attention", "decode_attention"}
BORDERS = (1, 2, 15, 16, 17, 31, 32, 33, 47, 48, 49, 64, 80)
LONGEST, MOST = 81, 20  # tokens of a prompt and of an output


@dataclass(frozen=True)
class Wish:
    """One request of an example, and the step at which it arrives."""

    prompt: tuple[int, ...]
    n: int
    temperature: float
    max_tokens: int
    report: bool
    priority: int
    arrival: int

    @property
    def params(self) -> SamplingParams:
        return SamplingParams(
            n=self.n,
            temperature=self.temperature,
            seed=len(self.prompt),
            max_tokens=self.max_tokens,
            logprobs=2,
            prompt_logprobs=0 if self.report else None,
        )


@st.composite
def wishes(draw: st.DrawFn) -> Wish:
    """Prompts of lengths around page borders, which share beginnings of any length."""
    length = draw(st.sampled_from(BORDERS) | st.integers(1, LONGEST))
    shared = draw(st.sampled_from((0, 15, 16, 32, 40, LONGEST)))
    prompt = some_tokens(min(shared, length), seed=0)
    prompt += some_tokens(length - len(prompt), seed=draw(st.integers(1, 3)))
    return Wish(
        tuple(prompt),
        n=draw(st.sampled_from((1, 1, 2, 3))),
        temperature=draw(st.sampled_from((0.0, 1.0))),
        max_tokens=draw(st.sampled_from((1, 2, 9, MOST, MOST, MOST))),
        report=draw(st.sampled_from((False, False, True))),
        priority=draw(st.integers(0, 1)),
        arrival=draw(st.integers(0, 6)),
    )


options_of_engines = st.fixed_dictionaries(
    {
        "spare_pages": st.sampled_from((0, 0, 1, 2, 5, 50)),
        "max_num_batched_tokens": st.sampled_from((2, 7, 16, 17, 33, 64, 300)),
        "max_num_seqs": st.sampled_from((1, 2, 4, 8, 8)),
        "long_prefill_share": st.sampled_from((0.25, 0.5, 1.0)),
        "page_size": st.sampled_from((16, 16, 32)),
        "enable_prefix_caching": st.sampled_from((True, True, True, False)),
    }
)
# Requests that take pages from each other, share a beginning, and fork within a page.
CROWD = [
    Wish(tuple(some_tokens(40 + i, seed=0)), 1 + i % 2, 1.0, MOST, False, 0, i) for i in range(4)
]
TIGHT = {
    "spare_pages": 1,
    "max_num_batched_tokens": 17,
    "max_num_seqs": 8,
    "long_prefill_share": 0.5,
    "page_size": 16,
    "enable_prefix_caching": True,
}
Answer = tuple[RequestOutput, list[Rows]]


class Alone:
    """What requests give when they have the engine to themselves, in one shot; remembered."""

    def __init__(self, folder: Path, policy: dict[str, str]) -> None:
        self.engine = Engine(
            folder, kv_cache_memory=1 << 21, page_size=64, enable_prefix_caching=False, **policy
        )
        self._recorder = Recorder(self.engine)
        self._known: dict[Any, Answer] = {}

    def answer(self, prompt: tuple[int, ...], params: SamplingParams) -> Answer:
        key = (prompt, repr(params))
        if key not in self._known:
            output = self.engine.generate(list(prompt), params)[0]
            ids = [f"{output.request_id}-{index}" for index in range(params.n)]
            self._known[key] = output, [self._recorder.rows.pop(id) for id in ids]
        return self._known[key]


@pytest.fixture(scope="module")
def alone(checkpoint: Checkpoints) -> Callable[[str], Alone]:
    made: dict[str, Alone] = {}

    def get(case: str) -> Alone:
        if case not in made:
            made[case] = Alone(checkpoint(CASES[case][0]), CASES[case][1])
        return made[case]

    return get


def engine_for(
    folder: Path, requests: list[Wish], options: dict[str, Any], policy: dict[str, str]
) -> Engine:
    """As many pages as the longest request fills alone, and a few to spare."""
    longest = max(len(wish.prompt) + wish.max_tokens for wish in requests)
    pages = pages_for(longest, options["page_size"]) + options.pop("spare_pages")
    return Engine(folder, **small_pool(folder, pages, **options, **policy))


def serve(engine: Engine, requests: list[Wish]) -> tuple[list[Generation], Recorder]:
    """Everything to its end, each request arriving at its step."""
    recorder = Recorder(engine)
    generations: dict[int, Generation] = {}
    for step in range(100_000):
        for index, wish in enumerate(requests):
            if wish.arrival == step:
                generations[index] = engine.add(
                    list(wish.prompt), wish.params, priority=wish.priority
                )
        if len(generations) == len(requests) and not engine.scheduler.has_work:
            break
        engine.step()
        engine.scheduler.check_integrity()
    return [generations[index] for index in range(len(requests))], recorder


def check(wish: Wish, generation: Generation, recorder: Recorder, alone: Alone) -> None:
    output = generation.whole()
    expected, expected_rows = alone.answer(wish.prompt, wish.params)
    assert output.error is None
    assert output.prompt_logprobs == expected.prompt_logprobs
    assert output.outputs == expected.outputs  # tokens, logprobs, reasons
    for branch, rows in zip(generation.branches, expected_rows, strict=True):
        check_rows(recorder.rows[branch.request.id], rows, alone, branch.request.tokens)


def check_rows(
    found: Rows, expected: Rows, alone: Alone, tokens: Callable[[int, int], list[int]]
) -> None:
    """Rows that the lonely run did not compute (a fork's prompt) come from its one-shot run."""
    assert max(found) == max(expected)
    missing = sorted(found.keys() - expected.keys())
    if missing:
        prompt = tuple(tokens(0, missing[-1] + 1))
        _, (own,) = alone.answer(prompt, SamplingParams(temperature=0, max_tokens=1))
        expected = {**own, **expected}
    for position, row in found.items():
        assert bitwise(row, expected[position]), f"logits of position {position} differ"


@pytest.mark.parametrize("case", CASES)
def test_no_cut_changes_a_bit(
    checkpoint: Checkpoints, alone: Callable[[str], Alone], case: str
) -> None:
    family, policy = CASES[case]
    folder, lonely = checkpoint(family), alone(case)
    seen = {"preemptions": 0, "forks": 0, "hit_tokens": 0, "copies": 0}

    @example(requests=CROWD, options=TIGHT)
    @settings(max_examples=8, derandomize=True, database=None, deadline=None)
    @given(requests=st.lists(wishes(), min_size=1, max_size=6), options=options_of_engines)
    def holds(requests: list[Wish], options: dict[str, Any]) -> None:
        tokens = max(options["max_num_batched_tokens"], ALIGNED.get(case, 1))
        options = {**options, "max_num_batched_tokens": tokens}
        engine = engine_for(folder, requests, dict(options), policy)
        generations, recorder = serve(engine, requests)
        assert max(recorder.counts) <= options["max_num_batched_tokens"]
        for wish, generation in zip(requests, generations, strict=True):
            check(wish, generation, recorder, lonely)
        check_idle(engine)
        for name in seen:
            seen[name] += getattr(engine.scheduler.stats(), name)

    holds()
    rare = {"preemptions"} if case == "sliding" else set()
    assert all(count > 0 for name, count in seen.items() if name not in rare), seen


@pytest.mark.parametrize("case", [name for name in CASES if not PHASES & CASES[name][1].keys()])
def test_generated_rows_are_those_of_the_whole_text_in_one_shot(
    alone: Callable[[str], Alone], case: str
) -> None:
    """Where prompt and output attend alike, decoding is prefill one token at a time."""
    lonely = alone(case)
    prompt = tuple(some_tokens(45))
    params = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
    output, (rows,) = lonely.answer(prompt, params)
    text = (*prompt, *output.outputs[0].token_ids)
    _, (whole,) = lonely.answer(text, SamplingParams(temperature=0, max_tokens=1))
    assert rows.keys() | {len(text) - 1} == whole.keys()
    assert all(bitwise(rows[position], whole[position]) for position in rows)


def test_the_number_of_threads_changes_no_bit(
    checkpoint: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One engine per pool of threads, all with the same batch."""
    found: list[dict[str, Rows]] = []
    for threads in (1, 2, 5):
        pool = native.module().Kernels(native.chosen_isa(), threads)
        monkeypatch.setattr(native, "kernels", lambda pool=pool: pool)
        engine = Engine(checkpoint("qwen3_mixed"), kv_cache_memory=1 << 20, dtype="bfloat16")
        recorder = Recorder(engine)
        engine.generate([some_tokens(length) for length in (300, 64, 5)], SamplingParams(seed=1))
        found.append(recorder.rows)
    for others in found[1:]:
        assert others.keys() == found[0].keys()
        for id, rows in others.items():
            assert all(bitwise(row, found[0][id][position]) for position, row in rows.items())
