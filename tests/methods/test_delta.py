"""Delta through the whole engine: limits, an independent oracle, causality, the law of cuts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade import Engine
from saccade.engine.attention.delta import Delta
from saccade.kernels import native

from ..engine.conftest import Checkpoints, Engines
from ..engine.engine_probe import Recorder, bitwise, greedy, small_pool, some_tokens
from .delta_oracle import delta_rows

pytestmark = pytest.mark.usefixtures("one_thread")
compiled = pytest.mark.skipif(
    native.chosen_isa() is None, reason="the references promise tokens, not bits"
)
PROMPT = some_tokens(300)  # with gamma=16, rows from 160 on are the tail


def logits(folder: Path, prompt: list[int], **options: Any) -> torch.Tensor:
    """Logits of all rows of the prompt and of five generated tokens."""
    with Engine(folder, kv_cache_memory=1 << 21, **{"page_size": 16, **options}) as engine:
        recorder = Recorder(engine)
        output = engine.generate(prompt, greedy(6))[0]
        return recorder.matrix(f"{output.request_id}-0")


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(
    "spec",
    [
        "delta(16, 2, 1)",
        "delta(16, 2, 1, mode=paper)",
        "delta(16, 2, 1, mode=recompute)",
        "delta(16, 2, 1, anchor_guard=0.25)",
        "delta(gamma=1, mode=paper, base=moba, block=16, topk=2)",
        "delta(1, 400, 16)",
        "delta(16, 2, 300)",  # no row is before the tail
    ],
)
def test_limits_that_are_dense(checkpoint: Checkpoints, spec: str) -> None:
    folder = checkpoint("llama")
    found = logits(folder, PROMPT, attention=spec)
    assert relative_error(found, logits(folder, PROMPT)) < 1e-5


@compiled
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_window_of_everything_is_dense_to_the_bit(checkpoint: Checkpoints, dtype: str) -> None:
    folder = checkpoint("llama")
    dense = logits(folder, PROMPT, dtype=dtype)
    for spec in ("delta", "delta(300, 5, 16, mode=paper)"):
        assert bitwise(logits(folder, PROMPT, attention=spec, dtype=dtype), dense)


@compiled
@pytest.mark.parametrize("mode", ["lse", "paper", "recompute"])
def test_an_anchor_at_the_first_row_alone_corrects_nothing(
    checkpoint: Checkpoints, mode: str
) -> None:
    folder, prompt = checkpoint("llama"), PROMPT[:229]  # the tail begins at 72
    found = logits(folder, prompt, attention=f"delta(10, 2, 100, mode={mode})")
    window = logits(folder, prompt, attention="window(10, 2)")
    assert bitwise(found[:72], window[:72]) and not bitwise(found[72:229], window[72:229])


def oracle_logits(folder: Path, tokens: list[int], prompt_len: int, method: Delta) -> torch.Tensor:
    """transformers' own model, its attention replaced by delta_rows and dense generated rows."""

    def attention(module: Any, q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> Any:
        group = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        out = delta_rows(q[0], k[0], v[0], q.shape[-1] ** -0.5, prompt_len, method)
        return out[None].transpose(1, 2), None

    transformers.AttentionInterface.register("delta_oracle", attention)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="delta_oracle"
    )
    with torch.inference_mode():
        return model(torch.tensor([tokens]), use_cache=False).logits[0]


@pytest.mark.parametrize(
    "method",
    [
        Delta(24, 3, 16),
        Delta(24, 3, 16, "paper"),
        Delta(9, 0, 5, "recompute"),
        Delta(7, 1, 48, "lse"),
        Delta(24, 3, 16, anchor_guard=0.1),
        Delta(24, 3, 32, "paper", anchor_guard=0.05),
        Delta(gamma=16, mode="paper", base="moba", block=16, topk=3),
        Delta(gamma=32, mode="recompute", base="moba", block=32, topk=2),
    ],
    ids=str,
)
def test_against_an_independent_model(checkpoint: Checkpoints, method: Delta) -> None:
    """All three layers, prefill and the dense rows of decode after it."""
    folder = checkpoint("llama")
    options = ", ".join(f"{name}={value}" for name, value in vars(method).items())
    with Engine(folder, attention=f"delta({options})", page_size=16) as engine:
        recorder = Recorder(engine)
        output = engine.generate(PROMPT, greedy(6))[0]
        found = recorder.matrix(f"{output.request_id}-0")
    tokens = [*PROMPT, *output.outputs[0].token_ids[:-1]]
    truth = oracle_logits(folder, tokens, len(PROMPT), method)
    assert relative_error(found, truth) < 1e-4
    assert relative_error(found, logits(folder, PROMPT)) > 1e-3


@compiled
@pytest.mark.parametrize(
    "spec",
    [
        "delta(24, 3, 16)",
        "delta(24, 3, 16, mode=paper, anchor_guard=0.05)",
        "delta(gamma=16, mode=paper, base=moba, block=16, topk=3)",
    ],
)
@pytest.mark.parametrize("at", [70, 79, 80, 159, 200])
def test_a_later_token_changes_nothing_before_it(
    checkpoint: Checkpoints, spec: str, at: int
) -> None:
    folder = checkpoint("qwen3")
    changed = [*PROMPT[:at], (PROMPT[at] + 1) % 100 + 2, *PROMPT[at + 1 :]]
    first = logits(folder, PROMPT, attention=spec)
    second = logits(folder, changed, attention=spec)
    assert bitwise(first[:at], second[:at])
    assert not bitwise(first[at : at + 1], second[at : at + 1])


@compiled
@pytest.mark.parametrize(
    "policy",
    [
        {"attention": "delta(24, 3, 16)"},
        {"attention": "delta(20, 0, 8, mode=paper)", "dtype": "bfloat16"},
        {"attention": "delta(24, 3, 16, anchor_guard=0.05)"},
        {"attention": "delta(24, 3, 32, mode=paper, anchor_guard=0.05)"},
        {"attention": "delta(24, 3, 4, anchor_guard=0.05)"},
        {"prefill_attention": "delta(24, 3, 24)", "decode_attention": "moba(16, 2)"},
        {"attention": "delta(gamma=16, mode=paper, base=moba, block=32, topk=2)"},
        {"attention": "0:dense; 1:delta(24, 3, 16, mode=recompute); *:delta(24, 3, 24)"},
    ],
    ids=str,
)
@settings(max_examples=6)
@given(
    length=st.sampled_from([1, 17, 128, 144, 145, 191, 192, 193, 230]),
    budget=st.integers(48, 150),
    shared=st.sampled_from([0, 15, 64, 96, 130, 230]),
    more=st.sampled_from([1, 16, 60]),
    pages=st.integers(19, 40),
)
def test_law_of_cuts(
    checkpoint: Checkpoints,
    policy: dict[str, str],
    length: int,
    budget: int,
    shared: int,
    more: int,
    pages: int,
) -> None:
    """Chunks, a neighbour, a prefix hit and preemption change no bit of any row."""
    folder = checkpoint("llama")
    prompt = some_tokens(length, seed=length)
    other = [*prompt[: min(shared, length)], *some_tokens(more, seed=shared + 1)]
    alone = [
        logits(folder, each, **policy, enable_prefix_caching=False) for each in (prompt, other)
    ]
    options = small_pool(folder, pages, **policy, max_num_batched_tokens=budget)
    with Engine(folder, **options) as engine:
        recorder = Recorder(engine)
        outputs = [engine.generate([prompt, other], greedy(6)) for _ in range(2)]
        engine.scheduler.check_integrity()
    for pair in outputs:
        for output, truth in zip(pair, alone, strict=True):
            for position, row in recorder.rows[f"{output.request_id}-0"].items():
                assert bitwise(row, truth[position]), position


@compiled
@pytest.mark.parametrize("spec", ["delta(24, 3, 16)", "delta(24, 3, 16, anchor_guard=0.05)"])
def test_requests_that_preempt_each_other(
    checkpoint: Checkpoints, make_engine: Engines, spec: str
) -> None:
    folder = checkpoint("llama")
    prompts = [some_tokens(170 + 9 * i, seed=i) for i in range(3)]
    params = greedy(40)
    alone = [make_engine(folder, attention=spec).generate(each, params)[0] for each in prompts]
    options = small_pool(folder, 41, attention=spec, max_num_batched_tokens=64)
    engine = make_engine(folder, **options)
    found = engine.generate(prompts, params)
    assert engine.scheduler.stats().preemptions > 0
    assert [each.outputs for each in found] == [each.outputs for each in alone]


@compiled
def test_pages_of_the_tail_serve_the_same_prompt_alone(
    checkpoint: Checkpoints, make_engine: Engines
) -> None:
    folder, longer = checkpoint("llama"), [*PROMPT, *some_tokens(60, seed=3)]
    expected = [
        make_engine(folder, attention="delta(24, 3, 16)").generate(each, greedy(3, logprobs=3))[0]
        for each in (PROMPT, longer, PROMPT[:200])
    ]
    engine = make_engine(folder, attention="delta(24, 3, 16)")
    cached = []
    for prompt, alone in zip((PROMPT, PROMPT, longer, PROMPT[:200]), (0, 0, 1, 2), strict=True):
        output = engine.generate(prompt, greedy(3, logprobs=3))[0]
        cached.append(output.num_cached_tokens)
        assert output.outputs == expected[alone].outputs
    assert cached == [0, 288, 160, 64]  # tails begin at 160, 160, 224 and 64


@compiled
@pytest.mark.parametrize("length", [150, 289, 300, 304])
@pytest.mark.parametrize("spec", ["delta(24, 3, 16)", "delta(24, 3, 8, anchor_guard=0.05)"])
def test_forks(checkpoint: Checkpoints, make_engine: Engines, spec: str, length: int) -> None:
    """n continuations of one prompt, whose last page is copied on write, agree with lone ones."""
    folder, prompt = checkpoint("llama"), some_tokens(length, seed=2)
    lone = make_engine(folder, attention=spec).generate(prompt, greedy(20))[0]
    engine = make_engine(folder, attention=spec)
    forked = engine.generate(prompt, greedy(20, n=3))[0]
    assert [each.token_ids for each in forked.outputs] == [lone.outputs[0].token_ids] * 3
    assert engine.scheduler.stats().forks == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"attention": "delta(0)"}, "window and gamma must be at least 1"),
        ({"attention": "delta(gamma=0)"}, "window and gamma must be at least 1"),
        ({"attention": "delta(mode=mean)"}, "mode must be one of lse, paper, recompute"),
        ({"attention": "delta(mode=3)"}, "mode must be one of lse, paper, recompute, not '3'"),
        ({"attention": "delta(base=nsa)"}, "base must be one of window, moba, not 'nsa'"),
        ({"attention": "delta(base=moba)"}, "no complement to merge; use mode=paper"),
        ({"attention": "delta(base=moba, mode=paper, block=7)"}, "block must be a power of two"),
        ({"attention": "delta(anchor_guard=1.5)"}, r"anchor_guard must be in \[0, 1\)"),
        ({"attention": "delta(anchor_guard=half)"}, "must be a number like 0.25, not 'half'"),
        ({"attention": "delta(gamma=24, anchor_guard=0.5)"}, "gamma=24 must divide"),
        ({"attention": "delta(gamma=8192)"}, "chunk alignment of 8192 tokens"),
        ({"decode_attention": "delta"}, "decode_attention: delta does not serve this phase; use"),
    ],
    ids=str,
)
def test_unusable_settings_are_refused(
    checkpoint: Checkpoints, options: dict[str, str], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        Engine(checkpoint("llama"), **options)


def test_a_layer_with_a_window_of_its_own_is_refused(checkpoint: Checkpoints) -> None:
    with pytest.raises(ValueError, match="sliding window of its own"):
        Engine(checkpoint("mistral"), attention="delta")
