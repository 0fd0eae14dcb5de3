"""MoBA through the whole engine: limits, an independent oracle, causality, the law of cuts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade import Engine
from saccade.kernels import native

from ..engine.conftest import Checkpoints
from ..engine.engine_probe import Recorder, bitwise, greedy, small_pool, some_tokens

pytestmark = pytest.mark.usefixtures("one_thread")
compiled = pytest.mark.skipif(
    native.chosen_isa() is None, reason="the references promise tokens, not bits"
)
PROMPT = some_tokens(120)


def logits(folder: Path, prompt: list[int], **options: Any) -> torch.Tensor:
    """Logits of all rows of the prompt and of five generated tokens."""
    with Engine(folder, kv_cache_memory=1 << 20, **{"page_size": 16, **options}) as engine:
        recorder = Recorder(engine)
        output = engine.generate(prompt, greedy(6))[0]
        return recorder.matrix(f"{output.request_id}-0")


@compiled
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("spec", ["moba(16, 64)", "moba(32, 4)", "moba(128, 1)", "moba(16, 8)"])
def test_as_many_blocks_as_there_are_is_dense(
    checkpoint: Checkpoints, spec: str, dtype: str
) -> None:
    folder = checkpoint("llama")
    assert bitwise(
        logits(folder, PROMPT, attention=spec, dtype=dtype), logits(folder, PROMPT, dtype=dtype)
    )


def test_the_current_block_may_be_counted_apart(checkpoint: Checkpoints) -> None:
    folder = checkpoint("llama")
    inside = logits(folder, PROMPT, attention="moba(16, 3)")
    beside = logits(folder, PROMPT, attention="moba(16, 2, topk_includes_current=0)")
    assert bitwise(inside, beside)
    assert not bitwise(inside, logits(folder, PROMPT))


def moba_mask(q: torch.Tensor, k: torch.Tensor, block: int, topk: int) -> torch.Tensor:
    """bool [H, T, T] from the paper's rule, one row and head at a time; q, k [H, T, d]."""
    heads, length, _ = q.shape
    mask = torch.zeros((heads, length, length), dtype=torch.bool)
    for h in range(heads):
        for t in range(length):
            own = t // block
            means = [k[h, j * block : (j + 1) * block].mean(0) for j in range(own)]
            scores = [float(q[h, t] @ mean) for mean in means]
            best = sorted(range(own), key=lambda j: (-scores[j], -j))[: topk - 1]
            for j in [*best, own]:
                mask[h, t, j * block : min((j + 1) * block, t + 1)] = True
    return mask


def oracle_logits(folder: Path, tokens: list[int], block: int, topk: int) -> torch.Tensor:
    """transformers' own model, its attention replaced by masked softmax over moba_mask."""

    def attention(module: Any, q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> Any:
        group = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        mask = moba_mask(q[0], k[0], block, topk)
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask[None])
        return out.transpose(1, 2), None

    transformers.AttentionInterface.register("moba_oracle", attention)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="moba_oracle"
    )
    with torch.inference_mode():
        return model(torch.tensor([tokens]), use_cache=False).logits[0]


@pytest.mark.parametrize(("block", "topk"), [(16, 2), (16, 3), (32, 2)])
def test_against_an_independent_model(checkpoint: Checkpoints, block: int, topk: int) -> None:
    """Prefill and decode both: the generated rows are compared too."""
    folder = checkpoint("llama")
    with Engine(folder, attention=f"moba({block}, {topk})", page_size=16) as engine:
        recorder = Recorder(engine)
        output = engine.generate(PROMPT, greedy(6))[0]
        found = recorder.matrix(f"{output.request_id}-0")
    tokens = [*PROMPT, *output.outputs[0].token_ids[:-1]]
    truth = oracle_logits(folder, tokens, block, topk)
    assert float((found - truth).abs().max() / truth.abs().max()) < 1e-4


@compiled
@pytest.mark.parametrize("spec", ["moba(16, 3)", "moba(64, 2)"])
def test_a_later_token_changes_nothing_before_it(checkpoint: Checkpoints, spec: str) -> None:
    folder = checkpoint("qwen3")
    changed = [*PROMPT[:70], (PROMPT[70] + 1) % 100 + 2, *PROMPT[71:]]
    first = logits(folder, PROMPT, attention=spec)
    second = logits(folder, changed, attention=spec)
    assert bitwise(first[:70], second[:70])
    assert not bitwise(first[70:120], second[70:120])


@compiled
@pytest.mark.parametrize(
    "policy",
    [
        {"attention": "moba(16, 3)"},
        {"attention": "moba(32, 2)", "dtype": "bfloat16"},
        {"prefill_attention": "moba(16, 2)", "decode_attention": "dense"},
        {"prefill_attention": "dense", "decode_attention": "moba(16, 2)"},
        {"attention": "0:dense; 1:moba(16, 2); *:moba(64, 2)"},
    ],
    ids=str,
)
@settings(max_examples=8)
@given(
    length=st.sampled_from([1, 15, 16, 17, 47, 63, 64, 65, 100]),
    budget=st.integers(1, 70),
    shared=st.integers(0, 60),
    pages=st.integers(14, 30),
)
def test_law_of_cuts(
    checkpoint: Checkpoints,
    policy: dict[str, str],
    length: int,
    budget: int,
    shared: int,
    pages: int,
) -> None:
    """Chunks, a neighbour, a prefix hit and preemption change no bit of any row."""
    folder = checkpoint("llama")
    prompt = some_tokens(length, seed=length)
    other = [*prompt[: min(shared, length)], *some_tokens(40, seed=shared + 1)]
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
def test_decode_may_be_dense(checkpoint: Checkpoints) -> None:
    """As prefill_attention alone; dense from the first generated token on, and no keys left out."""
    folder = checkpoint("llama")
    spec = "moba(16, 2, decode=dense)"
    alone = logits(folder, PROMPT, prefill_attention="moba(16, 2)")
    assert bitwise(logits(folder, PROMPT, attention=spec), alone)
    assert bitwise(
        logits(folder, PROMPT, prefill_attention="moba(16, 2)", decode_attention=spec), alone
    )
    assert not bitwise(logits(folder, PROMPT, attention="moba(16, 2)"), alone)
    with Engine(folder, attention=f"1:{spec}; *:dense", page_size=16) as engine:
        assert [type(each).__name__ for each in engine.policy.prefill] == ["Dense", "Moba", "Dense"]
        assert {type(each).__name__ for each in engine.policy.decode} == {"Dense"}
        output = engine.generate(PROMPT, greedy(6))[0]
    reads = output.stats["attention"]
    assert reads["decode"]["share"] == 1.0 and reads["prefill"]["share"] < 1.0
    assert reads["decode"]["dense_fallbacks"] == 0


@pytest.mark.parametrize(
    "spec", ["moba(64, 2, decode=half)", "moba(8)", "moba(24)", "moba(64, 0)", "moba(64, 300)"]
)
def test_unusable_settings_are_refused(checkpoint: Checkpoints, spec: str) -> None:
    with pytest.raises(ValueError, match="moba"):
        Engine(checkpoint("llama"), attention=spec)


def test_a_layer_with_a_window_of_its_own_is_refused(checkpoint: Checkpoints) -> None:
    with pytest.raises(ValueError, match="sliding window of its own"):
        Engine(checkpoint("mistral"), attention="moba(64, 2)")


def test_forks_share_means(checkpoint: Checkpoints) -> None:
    """n continuations of one prompt, cut in the middle of a block, agree with lone ones."""
    folder = checkpoint("llama")
    params = greedy(20)
    with Engine(folder, attention="moba(32, 2)", page_size=16) as engine:
        lone = engine.generate(PROMPT[:41], params)[0].outputs[0].token_ids
    with Engine(folder, attention="moba(32, 2)", page_size=16) as engine:
        forked = engine.generate(PROMPT[:41], greedy(20, n=3))[0]
        assert [each.token_ids for each in forked.outputs] == [lone] * 3
        assert engine.scheduler.stats().forks == 2
