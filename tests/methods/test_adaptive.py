"""Adaptive heads through the whole engine: limits, an independent oracle, causality, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from saccade import Engine
from saccade.kernels import native

from ..engine.conftest import Checkpoints, Engines
from ..engine.engine_probe import Recorder, bitwise, greedy, some_tokens

pytestmark = pytest.mark.usefixtures("one_thread")
compiled = pytest.mark.skipif(
    native.chosen_isa() is None, reason="the references promise tokens, not bits"
)
PROMPT = some_tokens(120)
Tokens = list[int]


def logits(
    folder: Path, spec: str, prompt: Tokens = PROMPT, **options: Any
) -> tuple[torch.Tensor, Tokens, float]:
    """Logits of all rows of the prompt and of nine generated tokens; all tokens; keys read, of
    those visible.
    """
    options = {"page_size": 16, "kv_cache_memory": 1 << 21, **options}
    with Engine(folder, attention=spec, **options) as engine:
        recorder = Recorder(engine)
        output = engine.generate(prompt, greedy(10))[0]
        assert engine.reads.prefill.dense_fallbacks == 0
        share = engine.reads.prefill.share or 0.0
        tokens = [*prompt, *output.outputs[0].token_ids]
        return recorder.matrix(f"{output.request_id}-0"), tokens, share


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@compiled
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("moments", ["blocks", "diagonal", "full"])
def test_a_window_of_all_keys_is_dense(checkpoint: Checkpoints, moments: str, dtype: str) -> None:
    """No far keys: nothing to decide, also where no head is ever content."""
    folder = checkpoint("llama")
    found, _, share = logits(folder, f"adaptive(129, 3, 2.0, {moments}, 16)", dtype=dtype)
    assert bitwise(found, logits(folder, "dense", dtype=dtype)[0]) and share == 1


@compiled
@pytest.mark.parametrize("bound", [0, 1])
def test_content_with_anything_is_a_window(checkpoint: Checkpoints, bound: int) -> None:
    folder = checkpoint("llama")
    found, _, _ = logits(folder, f"adaptive(20, 3, 0.0, blocks, 16, {bound})")
    assert bitwise(found, logits(folder, "window(20, 3)")[0])


@pytest.mark.parametrize("tau", ["1.0", "7"])
@pytest.mark.parametrize("moments", ["blocks", "full"])
def test_never_content_is_dense(checkpoint: Checkpoints, moments: str, tau: str) -> None:
    folder = checkpoint("llama")
    found, _, share = logits(folder, f"adaptive(20, 3, {tau}, {moments}, 16)")
    assert relative_error(found, logits(folder, "dense")[0]) < 1e-5 and share == 1


def test_never_content_in_bfloat16_within_budget(checkpoint: Checkpoints) -> None:
    """At most twice the error of dense attention in the same precision."""
    folder = checkpoint("llama")
    exact, tokens, _ = logits(folder, "dense")
    dense, found = (
        logits(folder, spec, tokens[:120], dtype="bfloat16")[0][:120] - exact[:120]
        for spec in ("dense", "adaptive(20, 3, 1.0, blocks, 16)")
    )
    assert found.square().mean() <= 4 * dense.square().mean()


def oracle(folder: Path, tokens: Tokens, moments: str, tau: float, bound: bool) -> Any:
    """(float32 [T, V], smallest margin of a decision, share of heads that stay local) of
    transformers' own model under the rule for window 20, sinks 3 and blocks of 16.
    """
    margins: list[float] = []
    stays: list[bool] = []

    def foretold(q: torch.Tensor, keys: torch.Tensor, border: int) -> float:
        """q [d], scaled, over the far ones of keys [L, d]; moments of whole blocks."""
        stop = -(-border // 16) * 16
        if moments == "blocks":
            masses = []
            for at in range(0, stop, 16):
                some = keys[max(at, 3) : at + 16]
                mean, var = some.mean(0), some.var(0, correction=0)
                count = min(at + 16, border) - max(at, 3)
                masses.append(float(q @ mean + (q * q * var).sum() / 2) + torch.tensor(count).log())
            return float(torch.stack(masses).logsumexp(0))
        seen = keys[3:stop]
        mean, count = seen.mean(0), torch.tensor(border - 3).log()
        if moments == "diagonal":
            return float(count + q @ mean + (q * q * seen.var(0, correction=0)).sum() / 2)
        if stop < 16 * (16 // 2):  # 2 rows of the covariance, of 16, in each block
            return torch.inf
        total = 0.0
        for back in range(8):  # each two rows as of their own block's end
            end = stop - 16 * back
            rows = slice((end // 16 - 1) % 8 * 2, (end // 16 - 1) % 8 * 2 + 2)
            centred = keys[3:end] - keys[3:end].mean(0)
            covariance = centred.T @ centred / (end - 3)
            total += float(q[rows] @ (covariance[rows] @ q)) / 2
        return float(count + q @ mean) + total

    def bounded(q: torch.Tensor, keys: torch.Tensor, border: int) -> float:
        masses = []
        for at in range(0, border, 16):
            some = keys[at : at + 16]
            most = torch.maximum(q * some.amin(0), q * some.amax(0)).sum()
            masses.append(most + torch.tensor(float(min(at + 16, border) - max(at, 3))).log())
        return float(torch.stack(masses).logsumexp(0))

    def is_local(q: torch.Tensor, keys: torch.Tensor, row: int) -> bool:
        border = row - 20 + 1
        if border <= 3:
            return True
        scores = keys[: row + 1] @ q
        local = float(torch.cat([scores[:3], scores[border:]]).logsumexp(0))
        needed = float(torch.tensor(tau / (1 - tau)).log())
        found = [local - foretold(q, keys, border) - needed]
        if bound:
            found.append(local - bounded(q, keys, border) - needed)
        margins.extend(abs(each) for each in found)
        stays.append(min(found) >= 0)
        return stays[-1]

    def attention(module: Any, q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> Any:
        group, length = q.shape[1] // k.shape[1], q.shape[2]
        k, v = k.repeat_interleave(group, 1)[0].double(), v.repeat_interleave(group, 1)[0].double()
        queries, at = q[0].double() * module.scaling, torch.arange(length)
        out = torch.empty_like(q)
        for head in range(q.shape[1]):
            for row in range(length):
                sees = at <= row
                if is_local(queries[head, row], k[head], row):
                    sees = sees & ((at < 3) | (row - at < 20))
                weights = (k[head, sees] @ queries[head, row]).softmax(0)
                out[0, head, row] = (weights @ v[head, sees]).float()
        return out.transpose(1, 2), None

    transformers.AttentionInterface.register("adaptive_oracle", attention)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="adaptive_oracle"
    )
    with torch.inference_mode():
        found = model(torch.tensor([tokens]), use_cache=False).logits[0]
    return found, min(margins), sum(stays) / len(stays)


@pytest.mark.parametrize(
    ("moments", "tau", "bound"),
    [("blocks", 0.4, 0), ("diagonal", 0.4, 0), ("full", 0.08, 0), ("blocks", 0.0002, 1)],
)
def test_against_an_independent_model(
    checkpoint: Checkpoints, moments: str, tau: float, bound: int
) -> None:
    folder = checkpoint("llama")
    spec = f"adaptive(20, 3, {tau}, {moments}, 16, {bound})"
    found, tokens, share = logits(folder, spec, some_tokens(220))
    truth, margin, stays = oracle(folder, tokens[:-1], moments, tau, bool(bound))
    assert margin > 1e-5 and 0.04 < stays < 0.9 and 0 < share < 1
    assert relative_error(found, truth) < 1e-4


@compiled
@pytest.mark.parametrize("at", [0, 3, 40, 64, 119])
@pytest.mark.parametrize("moments", ["blocks", "diagonal", "full"])
def test_what_comes_later_changes_nothing_before(
    checkpoint: Checkpoints, moments: str, at: int
) -> None:
    edited = [*PROMPT[:at], 3 + PROMPT[at] % 100, *PROMPT[at + 1 :]]
    spec = f"adaptive(20, 3, 0.4, {moments}, 16, 0)"
    one, other = (logits(checkpoint("llama"), spec, prompt)[0] for prompt in (PROMPT, edited))
    assert bitwise(one[:at], other[:at]) and not torch.equal(one[at], other[at])


def test_the_safe_test_reads_no_less(checkpoint: Checkpoints) -> None:
    folder = checkpoint("llama")
    shares = [logits(folder, f"adaptive(20, 3, 0.4, blocks, 16, {bound})")[2] for bound in (0, 1)]
    assert shares[0] < shares[1] <= 1


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("adaptive(window=32)", "no shorter than a block of 64 tokens"),
        ("adaptive(64, block=24)", "power of two of at least 16, got 24"),
        ("adaptive(moments=half)", "one of blocks, diagonal, full, not 'half'"),
        ("adaptive(bound=2)", "bound 0 or 1, got 1024, 16, 2"),
        ("adaptive(tau=much)", "must be a number like 0.25"),
    ],
)
def test_unusable_settings_are_refused(checkpoint: Checkpoints, spec: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Engine(checkpoint("llama"), attention=spec)


def test_windowed_layers_and_pages_that_do_not_nest_are_refused(
    checkpoint: Checkpoints, make_engine: Engines
) -> None:
    with pytest.raises(ValueError, match="sliding window of its own"):
        Engine(checkpoint("mistral"), attention="adaptive")
    make_engine(checkpoint("llama"), attention="adaptive(block=32)", page_size=256)
