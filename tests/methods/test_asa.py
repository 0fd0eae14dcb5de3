"""ASA through the whole engine: an independent model, both forms, limits, memory, its config."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from saccade import Engine
from saccade.engine.attention.asa import Asa
from saccade.kernels import native

from ..engine.conftest import Checkpoints
from ..engine.engine_probe import Recorder, bitwise, greedy, some_tokens
from .asa_layer import Layer, dense, latent_shape
from .asa_layer import some_tokens as some_latents
from .asa_oracle import oracle_logits

pytestmark = pytest.mark.usefixtures("one_thread")
compiled = pytest.mark.skipif(
    native.chosen_isa() is None, reason="the references promise tokens, not bits"
)
PROMPT = some_tokens(120)
FORMS = ("expanded", "absorbed")


def logits(folder: Path, prompt: list[int], **options: Any) -> torch.Tensor:
    """Logits of all rows of the prompt and of generated tokens."""
    with Engine(folder, kv_cache_memory=1 << 20, **{"page_size": 16, **options}) as engine:
        recorder = Recorder(engine)
        output = engine.generate(prompt, greedy(6))[0]
        return recorder.matrix(f"{output.request_id}-0")


@pytest.mark.parametrize("family", ["asa", "asa_wide"])
@pytest.mark.parametrize("budget", [512, 7])
def test_against_an_independent_model(checkpoint: Checkpoints, family: str, budget: int) -> None:
    """Prefill, chunks and decode; the local layers expand prompts and absorb in decode."""
    folder = checkpoint(family)
    with Engine(folder, page_size=16, max_num_batched_tokens=budget) as engine:
        recorder = Recorder(engine)
        output = engine.generate(PROMPT, greedy(24))[0]
        found = recorder.matrix(f"{output.request_id}-0")
    tokens = [*PROMPT, *output.outputs[0].token_ids]
    truth = oracle_logits(folder, tokens[:-1])
    assert float((found - truth).abs().max() / truth.abs().max()) < 1e-4
    assert tokens[len(PROMPT) :] == truth[len(PROMPT) - 1 :].argmax(-1).tolist()


# ---- one layer ----


def error(found: torch.Tensor, truth: torch.Tensor) -> float:
    return float((found.double() - truth).abs().max() / truth.abs().max())


# Absorbing rounds queries and sums once more than expanding rounds keys and values.
LIMIT = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}


@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("window", [1, 16, 21, 100])
def test_both_forms_are_latent_attention(dtype: torch.dtype, window: int) -> None:
    tokens, shape = some_latents(90, dtype=dtype), latent_shape(window=window)
    truth = dense(tokens, shape.scale, window)
    for form in FORMS:
        found = Layer(Asa(form=form), shape, tokens).run(37, 38, 64)
        assert error(found, truth) < LIMIT[dtype]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cuts", [(64,), (5, 33, 34, 35, 80), tuple(range(1, 90))], ids=len)
@compiled
def test_evicted_pages_are_not_missed(form: str, cuts: tuple[int, ...]) -> None:
    tokens, shape = some_latents(90), latent_shape(window=21)
    whole = Layer(Asa(form=form), shape, tokens).run()
    assert bitwise(Layer(Asa(form=form), shape, tokens, evict=True).run(*cuts), whole)


@compiled
def test_all_blocks_without_compression_are_grouped_latent_attention() -> None:
    """Two groups are two latent attentions, of half the heads and one latent each; one is MLA."""
    tokens = some_latents(90, groups=2)
    tokens.gates[:] = torch.tensor([0.0, 1.0])
    method = Asa(block=16, topk=6, init=0, local=1)
    found = Layer(method, latent_shape(2), tokens).run(30)
    assert error(found, dense(tokens, 0.3)) < 1e-5
    for g in range(2):
        own = tokens.group(g)
        alone = Layer(method, latent_shape(1, heads=2), own).run(70)
        local = Layer(method, latent_shape(1, window=90, heads=2), own).run(70)
        assert bitwise(found[:, 2 * g : 2 * g + 2], alone) and bitwise(alone, local)


def test_means_of_latents_are_means_of_keys_and_values() -> None:
    tokens = some_latents(80, groups=2)
    layer = Layer(Asa(block=16), latent_shape(2), tokens)
    layer.run(17, 50)
    keys, values = tokens.up().expand(tokens.kept)
    pages = torch.arange(layer.cache.k.shape[0]).flip(0)  # of blocks, one to a page
    mean_keys, mean_values = tokens.up().expand(layer.cache.fields["mean_16"][pages, 0])
    for mean, each in ((mean_keys, keys), (mean_values, values)):
        assert torch.allclose(mean, each.unflatten(0, (-1, 16)).mean(1), atol=1e-5)


def test_only_compression_is_attention_over_means() -> None:
    tokens = some_latents(95, groups=2)
    tokens.gates[:] = torch.tensor([1.0, 0.0])
    found = Layer(Asa(block=16), latent_shape(2), tokens).run(33)
    assert bool((found[:15] == 0).all())  # before the first complete block
    keys, values = tokens.up().expand(tokens.kept)
    keys, values = (x[:80].unflatten(0, (-1, 16)).mean(1) for x in (keys, values))
    for t in (15, 16, 40, 79, 94):
        seen = (t + 1) // 16
        weights = (torch.einsum("hd,bhd->hb", tokens.q[t], keys[:seen]) * 0.3).softmax(-1)
        truth = torch.einsum("hb,bhd->hd", weights, values[:seen])
        assert torch.allclose(found[t], truth, atol=1e-5)


@compiled
@pytest.mark.parametrize("reuse", [2, 4, 16])
def test_shared_lists_are_tied_to_positions(reuse: int) -> None:
    """Every cut inside a run of rows: the list of its first row comes from an earlier step."""
    tokens = some_latents(140, groups=2)
    method, shape = Asa(block=16, topk=3, init=1, local=1, reuse=reuse), latent_shape(2)
    whole = Layer(method, shape, tokens)
    expected = whole.run()
    lists = whole.lists[0]
    for t in range(140):
        assert torch.equal(lists[t], lists[t - t % reuse])
    assert len(lists[::reuse].unique(dim=0)) > 8  # they do change
    for cuts in ((97, 114, 131), (98, 115), (99,), tuple(range(90, 140))):
        layer = Layer(method, shape, tokens)
        assert bitwise(layer.run(*cuts), expected)
        assert torch.equal(torch.cat(layer.lists), lists)
    own = Layer(replace(method, reuse=1), shape, tokens).run()
    assert not torch.allclose(own, expected)


@compiled
def test_a_later_token_changes_nothing_before_it(checkpoint: Checkpoints) -> None:
    folder = checkpoint("asa")
    changed = [*PROMPT[:70], (PROMPT[70] + 1) % 100 + 2, *PROMPT[71:]]
    first, second = logits(folder, PROMPT), logits(folder, changed)
    assert bitwise(first[:70], second[:70])
    assert not bitwise(first[70:120], second[70:120])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_within_budget(checkpoint: Checkpoints, dtype: str) -> None:
    """Beside the same layers with all blocks chosen, where rounding cannot change a selection."""
    folder = checkpoint("asa", dtype=dtype, topk=16)
    exact = oracle_logits(folder, PROMPT)
    rounded = oracle_logits(folder, PROMPT, getattr(torch, dtype))
    found = logits(folder, PROMPT)[: len(PROMPT)]
    allowed = 2 * (rounded - exact).square().mean().sqrt()
    assert (found - exact).square().mean().sqrt() <= allowed
