"""Limits in which every method must be dense attention, and causality, through the whole engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from saccade import Engine
from saccade.kernels import native

from ..engine.conftest import Checkpoints
from ..engine.engine_probe import Recorder, bitwise, greedy, some_tokens

pytestmark = pytest.mark.usefixtures("one_thread")
compiled = pytest.mark.skipif(
    native.chosen_isa() is None, reason="the references promise tokens, not bits"
)
PROMPT = some_tokens(100)
LENGTH = len(PROMPT) + 5  # rows of PROMPT and the first five of six generated tokens


def logits(folder: Path, attention: str | None, prompt: list[int], **more: Any) -> torch.Tensor:
    """Logits of all rows of the prompt and of five generated tokens."""
    with Engine(folder, attention=attention, kv_cache_memory=1 << 20, page_size=16, **more) as one:
        recorder = Recorder(one)
        output = one.generate(prompt, greedy(6))[0]
        return recorder.matrix(f"{output.request_id}-0")


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@compiled
@pytest.mark.parametrize("family", ["llama", "qwen3_mixed", "mistral"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("size", [LENGTH, LENGTH + 1, 4096, 999_999_999])
@pytest.mark.parametrize("sinks", [0, 3, 500])
def test_a_window_of_all_keys_is_dense(
    checkpoint: Checkpoints, family: str, dtype: str, size: int, sinks: int
) -> None:
    folder = checkpoint(family)
    dense = logits(folder, "dense", PROMPT, dtype=dtype)
    spec = f"window(size={size}, sinks={sinks})"
    assert bitwise(logits(folder, spec, PROMPT, dtype=dtype), dense)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_sinks_that_cover_everything_are_dense(checkpoint: Checkpoints, family: str) -> None:
    """In a layer with a sliding window of its own there are no sinks, so this is that window."""
    folder = checkpoint(family)
    if family == "llama":
        found = logits(folder, f"window(size=1, sinks={LENGTH})", PROMPT)
        assert relative_error(found, logits(folder, "dense", PROMPT)) < 1e-5
    else:
        found = logits(folder, "window(size=7, sinks=100)", PROMPT)
        assert relative_error(found, logits(folder, "dense", PROMPT)) < 1e-5


def test_a_window_of_one_without_sinks_sees_itself_alone(checkpoint: Checkpoints) -> None:
    """Then a token's logits do not depend on what stands before it, but for its position."""
    folder = checkpoint("llama", rope_parameters={"rope_type": "default", "rope_theta": 1e30})
    found = logits(folder, "window(size=1, sinks=0)", PROMPT)
    other = logits(folder, "window(size=1, sinks=0)", [*some_tokens(50, seed=1), *PROMPT[50:]])
    assert relative_error(found[50:100], other[50:100]) < 1e-5
    assert relative_error(found[:50], other[:50]) > 1e-2


@pytest.mark.parametrize("family", ["llama", "qwen3_mixed", "mistral"])
@pytest.mark.parametrize("k_chunk", [1, 7, 16, 33, 64, LENGTH - 1, LENGTH, 1000])
@pytest.mark.parametrize("q_chunk", [1, 13, 1024])
def test_chunked_is_dense(checkpoint: Checkpoints, family: str, q_chunk: int, k_chunk: int) -> None:
    folder = checkpoint(family)
    dense = logits(folder, "dense", PROMPT)
    found = logits(folder, f"chunked({q_chunk}, {k_chunk})", PROMPT)
    assert relative_error(found, dense) < 1e-5


@pytest.mark.parametrize("k_chunk", [7, 64])
def test_chunked_in_bfloat16_within_budget(checkpoint: Checkpoints, k_chunk: int) -> None:
    """At most twice the error of dense attention in the same precision."""
    folder = checkpoint("llama")
    exact = logits(folder, "dense", PROMPT)[:100]
    dense = logits(folder, "dense", PROMPT, dtype="bfloat16")[:100] - exact
    found = logits(folder, f"chunked(32, {k_chunk})", PROMPT, dtype="bfloat16")[:100] - exact
    assert found.square().mean() <= 4 * dense.square().mean()


@compiled
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("q_chunk", [1, 9, 1024])
def test_chunked_in_one_piece_is_dense_to_the_bit(
    checkpoint: Checkpoints, q_chunk: int, dtype: str
) -> None:
    """One piece of keys: nothing is merged, and fp32 rounded once is what dense does itself."""
    folder = checkpoint("llama")
    dense = logits(folder, "dense", PROMPT, dtype=dtype)
    for k_chunk in (LENGTH, 4096):
        found = logits(folder, f"chunked({q_chunk}, {k_chunk})", PROMPT, dtype=dtype)
        assert bitwise(found, dense)


@compiled
def test_query_chunks_change_no_bit(checkpoint: Checkpoints) -> None:
    folder = checkpoint("qwen3_mixed")
    expected = logits(folder, "chunked(1, 12)", PROMPT)
    for q_chunk in (2, 31, 1000):
        assert bitwise(logits(folder, f"chunked({q_chunk}, 12)", PROMPT), expected)


@compiled
@pytest.mark.parametrize(
    ("family", "attention"),
    [
        ("llama", "dense"),
        ("llama", "window(size=20, sinks=2)"),
        ("llama", "chunked(8, 24)"),
        ("mistral", "dense"),
        ("qwen3_mixed", "0:chunked(5, 9); *:window(30)"),
    ],
)
@pytest.mark.parametrize("at", [1, 16, 63, 99])
def test_what_comes_later_changes_nothing_before(
    checkpoint: Checkpoints, family: str, attention: str, at: int
) -> None:
    folder = checkpoint(family)
    edited = [*PROMPT[:at], 3 + PROMPT[at] % 100, *PROMPT[at + 1 :]]
    found = [logits(folder, attention, prompt) for prompt in (PROMPT, edited, PROMPT[:at])]
    assert bitwise(found[0][:at], found[1][:at]) and bitwise(found[0][:at], found[2][:at])
    assert not torch.equal(found[0][at], found[1][at])
    entries = [prompt_logprobs(folder, attention, prompt) for prompt in (PROMPT, edited)]
    assert entries[0][:at] == entries[1][:at]


def prompt_logprobs(folder: Path, attention: str, prompt: list[int]) -> list[Any]:
    with Engine(folder, attention=attention, kv_cache_memory=1 << 20) as engine:
        params = greedy(1, prompt_logprobs=2)
        return list(engine.generate(prompt, params)[0].prompt_logprobs or ())


@pytest.mark.parametrize("family", ["llama", "qwen3_mixed"])
def test_a_window_forgets_what_it_left_behind(checkpoint: Checkpoints, family: str) -> None:
    """Three layers of window 8 without sinks reach 21 tokens back, and not one more."""
    folder = checkpoint(family)
    edited = [3 + PROMPT[0] % 100, *PROMPT[1:]]
    found = [logits(folder, "window(8, 0)", prompt)[:100] for prompt in (PROMPT, edited)]
    reach = sum(window - 1 for window in ((8, 8, 8) if family == "llama" else (5, 8, 5)))
    assert torch.equal(found[0][reach + 1 :], found[1][reach + 1 :])
    assert not torch.equal(found[0][reach], found[1][reach])
