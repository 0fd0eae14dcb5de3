"""InfLLM-V2 through the whole engine: limits, an independent oracle, the length that decides."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from saccade import Engine
from saccade.engine.attention.infllm import Infllm
from saccade.engine.attention.policy import parse_policy
from saccade.kernels import native

from ..engine.conftest import Checkpoints, Engines
from ..engine.engine_probe import Recorder, bitwise, greedy, some_tokens
from .infllm_oracle import mask_of

pytestmark = pytest.mark.usefixtures("one_thread")
compiled = pytest.mark.skipif(
    native.chosen_isa() is None, reason="the references promise tokens, not bits"
)
PROMPT = some_tokens(120)


def logits(folder: Path, prompt: list[int], **options: Any) -> torch.Tensor:
    """Logits of all rows of the prompt and of nine generated tokens."""
    with Engine(folder, kv_cache_memory=1 << 20, **{"page_size": 16, **options}) as engine:
        recorder = Recorder(engine)
        output = engine.generate(prompt, greedy(10))[0]
        return recorder.matrix(f"{output.request_id}-0")


@compiled
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "spec",
    [
        "infllm(32, 16, 64, 9, 1, 0, 0)",  # as many blocks as there are
        "infllm(16, 16, 16, 1, 0, 128, 0)",  # a window over everything
        "infllm(16, 16, 16, 10, 9, 0, 0)",  # first blocks to the end
        "infllm(32, 16, 32, 1, 0, 0, 130)",  # shorter than dense_len
    ],
)
def test_limits_that_are_dense(checkpoint: Checkpoints, spec: str, dtype: str) -> None:
    folder = checkpoint("llama")
    found = logits(folder, PROMPT, attention=spec, dtype=dtype)
    assert bitwise(found, logits(folder, PROMPT, dtype=dtype))


def oracle_logits(folder: Path, tokens: list[int], method: Infllm, prompt: int) -> torch.Tensor:
    """transformers' own model, its attention replaced by masked softmax over mask_of."""

    def attention(module: Any, q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> Any:
        group = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        mask = mask_of(q[0], k[0], method, prompt)
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask[None])
        return out.transpose(1, 2), None

    transformers.AttentionInterface.register("infllm_oracle", attention)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="infllm_oracle"
    )
    with torch.inference_mode():
        return model(torch.tensor([tokens]), use_cache=False).logits[0]


@pytest.mark.parametrize(
    ("method", "length"),
    [
        (Infllm(32, 16, 32, 2, 0, 0, 0), 120),
        (Infllm(32, 16, 32, 3, 1, 0, 0, "exact"), 120),
        (Infllm(16, 16, 16, 3, 1, 16, 100), 120),
        (Infllm(16, 16, 16, 3, 1, 16, 124), 120),  # the generated tokens turn sparse
        (Infllm(32, 16, 64, 1, 0, 0, 0), 130),
    ],
)
def test_against_an_independent_model(
    checkpoint: Checkpoints, make_engine: Engines, method: Infllm, length: int
) -> None:
    folder, prompt = checkpoint("llama"), some_tokens(length)
    options = ", ".join(str(getattr(method, field.name)) for field in fields(method))
    for budget in (512, 37):
        engine = make_engine(folder, attention=f"infllm({options})", max_num_batched_tokens=budget)
        recorder = Recorder(engine)
        output = engine.generate(prompt, greedy(10))[0]
        found = recorder.matrix(f"{output.request_id}-0")
        tokens = [*prompt, *output.outputs[0].token_ids[:-1]]
        truth = oracle_logits(folder, tokens, method, length)
        assert float((found - truth).abs().max() / truth.abs().max()) < 1e-4
        reads = output.stats["attention"]
        assert reads["prefill"]["dense_fallbacks"] == reads["decode"]["dense_fallbacks"] == 0


@compiled
def test_pages_of_a_dense_prompt_do_not_serve_a_sparse_one(
    checkpoint: Checkpoints, make_engine: Engines
) -> None:
    """Both ways round; and each serves its own kind, whatever the length."""
    folder, spec = checkpoint("llama"), "infllm(16, 16, 16, 2, 0, 0, 100)"
    lengths = (70, 99, 100, 120)
    alone = {n: logits(folder, PROMPT[:n], attention=spec) for n in lengths}
    assert not bitwise(alone[99][:70], alone[100][:70])
    for order in ((70, 99, 100, 120), (120, 100, 99, 70)):
        engine = make_engine(folder, attention=spec)
        recorder, cached = Recorder(engine), []
        for n in order:
            output = engine.generate(PROMPT[:n], greedy(10))[0]
            cached.append(output.num_cached_tokens)
            for position, row in recorder.rows[f"{output.request_id}-0"].items():
                assert bitwise(row, alone[n][position])
        # Generated tokens differ from the prompt's, so pages of the prompt alone are shared.
        assert cached == ([0, 64, 0, 96] if order[0] == 70 else [0, 96, 0, 64])


@compiled
@pytest.mark.parametrize("at", [1, 31, 63, 119])
def test_what_comes_later_changes_nothing_before(checkpoint: Checkpoints, at: int) -> None:
    folder, spec = checkpoint("llama"), "infllm(32, 16, 32, 2, 0, 0, 100)"
    edited = [*PROMPT[:at], 3 + PROMPT[at] % 100, *PROMPT[at + 1 :]]
    found = [logits(folder, prompt, attention=spec) for prompt in (PROMPT, edited)]
    assert bitwise(found[0][:at], found[1][:at]) and not torch.equal(found[0][at], found[1][at])


def test_modes() -> None:
    policy = parse_policy("0:dense; 1:infllm(dense_len=100); *:infllm", None, None, 4)
    keys = [policy.key(n) for n in (5, 99, 100, 8191, 8192, 9000)]
    assert keys[0] == keys[1] != keys[2] == keys[3] != keys[4] == keys[5] != keys[0]
    later = parse_policy("dense", None, "infllm", 2)  # what is generated later asks its position
    assert later.key(5) == later.key(9000)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("infllm(stride=8)", "stride must be a power of two of at least 16, got 8"),
        ("infllm(block=96)", "block must be a power of two of at least 16, got 96"),
        ("infllm(kernel=24)", "multiple of the stride of 16, and at most the block of 64; got 24"),
        ("infllm(kernel=128)", "at most the block of 64; got 128"),
        ("infllm(window=100)", "window must be whole blocks of 64, got 100"),
        ("infllm(topk=1)", "topk must be more than init"),
        ("infllm(topk=230)", "at most 256 blocks; got 230, 1 and 32"),
        ("infllm(norm=none)", "norm must be one of coarse, exact, not 'none'"),
    ],
)
def test_unusable_settings_are_refused(checkpoint: Checkpoints, spec: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Engine(checkpoint("llama"), attention=spec)


def test_windowed_layers_are_refused(checkpoint: Checkpoints) -> None:
    with pytest.raises(ValueError, match="sliding window of its own"):
        Engine(checkpoint("mistral"), attention="infllm")
