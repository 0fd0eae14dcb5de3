"""The law of cuts: chunks, neighbours, prefix hits, forks and preemption never change a bit.

Every row of logits that the engine computes, and everything it reports, is compared bitwise with
the same request alone in an engine that reads any prompt in one shot and caches no prefix.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from saccade import Engine, SamplingParams
from saccade.kernels import native

from .conftest import Checkpoints, check_idle
from .cuts import (
    CROWD,
    TIGHT,
    Alone,
    Wish,
    check,
    engine_for,
    options_of_engines,
    serve,
)
from .cuts import (
    wishes as any_wishes,
)
from .engine_probe import Recorder, Rows, bitwise, some_tokens

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
    "streaming": ("llama", {"attention": "streaming(sinks=3, window=9)"}),
    "streaming_evict": ("llama", {"attention": "streaming(sinks=3, window=9, mode=evict)"}),
    "streaming_evict_in_part": (
        "qwen3_mixed",
        {
            "dtype": "bfloat16",
            "attention": "0:dense; 1:streaming(17, 20, evict); *:streaming(2, 30, evict)",
        },
    ),
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
    "quest_wide": (
        "qwen3",
        {"dtype": "bfloat16", "decode_attention": "quest(budget=96, block=32)"},
    ),
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
    "zerotuning": ("llama", {"attention": "zerotuning(1.6, base=moba, block=16, topk=2)"}),
    "zerotuning_phases": (
        "smollm",
        {
            "dtype": "bfloat16",
            "prefill_attention": "zerotuning(0.5, 0_2)",
            "decode_attention": "zerotuning(3.0, base=window, size=20, sinks=2)",
        },
    ),
    "sinks": ("granite_swa", {"attention": "1:dense; *:moba(block=16, topk=2)"}),
    "gates_per_head": ("gated_heads", {"dtype": "bfloat16"}),
    "gates_per_channel": ("qwen3_next", {"attention": "moba(block=16, topk=2)"}),
    "no_rope": (
        "smollm3",
        {
            "dtype": "bfloat16",
            "prefill_attention": "moba(block=32, topk=2)",
            "decode_attention": "chunked(7, 5)",
        },
    ),
    "moba_keys": ("moba_keys", {"decode_attention": "dense", "dtype": "float16"}),
    "moba_kconv": ("moba_kconv", {"dtype": "bfloat16"}),
    "moba_kconv_rope": ("moba_kconv_rope", {"attention": "1:moba(16, 2); *:window(40)"}),
    "streaming_kconv": (
        "moba_kconv_rope",
        {"attention": "streaming(sinks=3, window=20, mode=evict)"},
    ),
    "moba_fla": ("moba_fla", {"dtype": "bfloat16"}),
    "infllm": ("llama", {"attention": "infllm(16, 16, 16, 3, 1, 16, 0)"}),
    "infllm_dense_len": (
        "qwen3",
        {"dtype": "bfloat16", "attention": "infllm(16, 16, 32, 2, 0, 0, 48, exact)"},
    ),
    "minimax": ("minimax_m3", {}),
    "minimax_bf16": ("minimax_m3", {"dtype": "bfloat16"}),
    "deltanet": ("qwen3_next_hybrid", {"attention": "moba(block=16, topk=1)"}),
    "deltanet_bf16": ("qwen3_5_hybrid", {"dtype": "bfloat16", "decode_attention": "window(9)"}),
    "qwen4": ("qwen4", {}),
    "qwen4_bf16": ("qwen4", {"dtype": "bfloat16"}),
    "qsa": ("qwen4_qsa", {}),
    "qsa_bf16": ("qwen4_qsa", {"dtype": "bfloat16", "attention": "qsa(16, 2)"}),
    "minicpm": ("minicpm", {"dtype": "bfloat16"}),
    "infllm_phases": (
        "llama",
        {
            "prefill_attention": "infllm(32, 16, 32, 2, 0, 0, 40)",
            "decode_attention": "infllm(16, 16, 16, 2, 0, 16, 60)",
        },
    ),
    "adaptive": ("llama", {"attention": "adaptive(16, 3, tau=0.5, block=16)"}),
    "adaptive_full": ("qwen3", {"attention": "adaptive(20, 2, 0.4, full, 16, bound=1)"}),
    "adaptive_phases": (
        "smollm",
        {
            "dtype": "bfloat16",
            "prefill_attention": "adaptive(32, 5, 0.6, diagonal, 32)",
            "decode_attention": "adaptive(16, 0, 0.6, blocks, 16)",
        },
    ),
    "nsa": ("nsa_fla", {}),
    "nsa_paper": ("nsa_paper", {"dtype": "bfloat16"}),
    "nsa_linear": ("nsa_linear", {}),
    "nsa_weighted": ("nsa_weighted", {"dtype": "float16"}),
    "nsa_selected": (
        "qwen3",
        {"attention": "nsa(32, 16, mean, topk=3, block=32, kv=shared, branches=selected)"},
    ),
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
    "mosa": ("mosa", {}),
    "mosa_tight": (
        "mosa_pure",
        {"dtype": "bfloat16", "attention": "mosa(capacity=1.0, burst=0, tau=0.6)"},
    ),
    "mosa_stream": ("mosa", {"attention": "mosa(mode=stream)"}),
    "mosa_stream_k": ("mosa_pure", {"dtype": "bfloat16", "attention": "mosa(mode=stream, k=20)"}),
}
# Rows so far from the beginning that they read lists by themselves: tokens before every prompt.
FAR = {"quest": 70, "quest_wide": 150, "lessismore": 70, "tidal": 70}
BY_LENGTH = {"infllm_dense_len", "minicpm"}  # rows attend by the length of the prompt
ALIGNED = {"delta": 4, "delta_moba": 8}  # tokens in a chunk of the prompt are a multiple of
# What these cases have no occasion for: lists of `stream` cannot go back by one token, as forks do.
RARE = {"sliding": {"preemptions"}, "mosa_stream": {"forks"}, "mosa_stream_k": {"forks"}}
PHASES = {"prefill_attention", "decode_attention"}


@pytest.fixture(scope="module")
def alone(checkpoint: Checkpoints) -> Callable[[str], Alone]:
    made: dict[str, Alone] = {}

    def get(case: str) -> Alone:
        if case not in made:
            made[case] = Alone(checkpoint(CASES[case][0]), CASES[case][1])
        return made[case]

    return get


@pytest.mark.parametrize("case", CASES)
def test_no_cut_changes_a_bit(
    checkpoint: Checkpoints, alone: Callable[[str], Alone], case: str
) -> None:
    family, policy = CASES[case]
    folder, lonely = checkpoint(family), alone(case)
    seen = {"preemptions": 0, "forks": 0, "hit_tokens": 0, "copies": 0}
    wishes = partial(any_wishes, before=FAR.get(case, 0))

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
    rare = RARE.get(case, set())
    own_pages = "kconv" in case or case.startswith(("deltanet", "qwen4"))  # with which forks begin
    rare |= {"copies"} if own_pages else set()
    assert all(count > 0 for name, count in seen.items() if name not in rare), seen


@pytest.mark.parametrize(
    "case",
    [name for name in CASES if not PHASES & CASES[name][1].keys() and name not in BY_LENGTH],
)
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
