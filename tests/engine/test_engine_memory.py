"""The memory plan against what is really taken, the prefix cache's hits, and the clock."""

from __future__ import annotations

import re
from typing import Any

import pytest

from saccade import Engine
from saccade.engine.errors import CapacityError

from .conftest import Checkpoints, Engines
from .engine_probe import greedy, kv_bytes, some_tokens, tokens_of

pytestmark = pytest.mark.usefixtures("one_thread")


def page_bytes(engine: Engine) -> int:
    return sum(each.k.nbytes + each.v.nbytes for each in engine._runner._cache.layers)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3_mixed"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pages_take_what_the_plan_says(
    checkpoint: Checkpoints, make_engine: Engines, family: str, dtype: str
) -> None:
    for budget in (100_000, 1 << 20):
        engine = make_engine(checkpoint(family), dtype=dtype, kv_cache_memory=budget)
        assert page_bytes(engine) == sum(engine.memory.group_bytes) <= budget
        pools = engine.scheduler.stats().total_pages
        assert pools == engine.memory.pages
        layers = zip(engine._runner._cache.layers, engine._runner._cache.group_of, strict=True)
        assert all(layer.k.shape[0] == pools[group] for layer, group in layers)


def test_without_a_figure_the_demand_is_enough(checkpoint: Checkpoints) -> None:
    with Engine(checkpoint("llama"), max_num_seqs=3, max_model_len=100) as engine:
        assert engine.memory.pages == (3 * 2,)  # 100 tokens are two pages of 64
        assert engine.memory.total_bytes <= engine.memory.request.available_bytes


def test_the_plan_as_text(checkpoint: Checkpoints, capsys: pytest.CaptureFixture[str]) -> None:
    Engine(checkpoint("qwen3_mixed"), kv_cache_memory=1 << 20, verbose=True).close()
    out, err = capsys.readouterr()
    assert out == ""
    for words in ("Memory plan", "weights", "scratch arena", "all context", "window of 5", "total"):
        assert words in err


def test_a_context_that_was_not_asked_for_is_reduced_and_noted(
    checkpoint: Checkpoints, make_engine: Engines
) -> None:
    folder = checkpoint("llama")
    probe = make_engine(folder)
    assert (probe.memory.max_model_len, probe.memory.notes) == (512, ())
    engine = make_engine(folder, kv_cache_memory=kv_bytes(probe, 5))
    assert engine.memory.pages == (5,) and engine.memory.max_model_len == 80
    (note,) = engine.memory.notes
    assert re.search(r"from 512 to 80 tokens", note)
    assert note in engine.memory.render()[-1]
    answer = engine.generate(some_tokens(60), greedy(100))[0].outputs[0]
    assert (len(answer.token_ids), answer.finish_reason) == (20, "length")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kv_cache_memory": 1}, r"16 tokens needs .* there are 1 B, enough for 0 tokens"),
        (
            {"kv_cache_memory": 50_000, "max_model_len": 500},
            r"500 tokens needs .* 48.8 KiB, enough",
        ),
        ({"kv_cache_memory": 1 << 50}, r"kv_cache_memory 1024.0 TiB.*are available"),
    ],
)
def test_too_little_memory_is_refused_with_the_numbers(
    checkpoint: Checkpoints, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(CapacityError, match=words):
        Engine(checkpoint("llama"), page_size=16, **options)


def test_a_window_needs_no_more_pages_however_long_the_text(
    checkpoint: Checkpoints, make_engine: Engines
) -> None:
    folder = checkpoint("mistral", sliding_window=100)
    engine = make_engine(folder, max_num_seqs=1, max_num_batched_tokens=16)
    assert engine.memory.pages == (9,)  # 100 + 16 tokens that begin anywhere in a page
    answer = engine.generate(some_tokens(300), greedy(100))[0].outputs[0]
    roomy = make_engine(folder)
    assert answer == roomy.generate(some_tokens(300), greedy(100))[0].outputs[0]


def test_the_prefix_cache_counts_its_hits(checkpoint: Checkpoints, make_engine: Engines) -> None:
    engine, prompt = make_engine(checkpoint("llama")), some_tokens(40)

    def cached(tokens: list[int], **more: Any) -> int:
        generation = engine.add(tokens, greedy(2), **more)
        while not generation.finished:
            engine.step()
        return generation.whole().num_cached_tokens

    assert cached(prompt) == 0
    assert cached(prompt) == 32
    assert cached(prompt[:32]) == 16  # the last token is computed, for its logits
    assert cached(prompt[:33]) == 32
    assert cached([*prompt[:20], 3, *prompt[21:]]) == 16
    assert cached([3, *prompt[1:]]) == 0
    assert cached(prompt, cache_salt="another") == 0
    assert cached(prompt, cache_salt="another") == 32
    stats = engine.scheduler.stats()
    assert stats.hit_tokens == 32 + 16 + 32 + 16 + 32
    assert stats.misses["other salt"] == 1
    off = make_engine(checkpoint("llama"), enable_prefix_caching=False)
    for _ in range(2):
        assert off.generate(prompt, greedy(2))[0].num_cached_tokens == 0


def test_an_answer_is_a_prefix_of_the_next_prompt(
    checkpoint: Checkpoints, make_engine: Engines
) -> None:
    """A chat's next turn finds the pages of the last answer; where phases differ, it must not."""
    turn = some_tokens(40)
    for options, expected in (
        ({}, 64),
        ({"attention": "window(size=9)"}, 64),
        ({"decode_attention": "window(size=9)"}, 32),
    ):
        engine = make_engine(checkpoint("llama"), **options)
        answer = tokens_of(engine.generate(turn, greedy(30))[0])[0]
        output = engine.generate([*turn, *answer, 5], greedy(4))[0]
        assert output.num_cached_tokens == expected
        fresh = make_engine(checkpoint("llama"), **options)
        assert tokens_of(output) == tokens_of(fresh.generate([*turn, *answer, 5], greedy(4))[0])


def test_another_policy_is_another_provenance(
    checkpoint: Checkpoints, make_engine: Engines
) -> None:
    """The same tokens under another policy have other digests: their pages could never be mixed."""
    roots = set()
    policies = [{}, {"attention": "window"}, {"attention": "window(size=9)"},
                {"attention": "chunked"}, {"decode_attention": "window"},
                {"prefill_attention": "window"}, {"attention": "0:window; *:dense"}]  # fmt: skip
    for options in policies:
        engine = make_engine(checkpoint("llama"), **options)
        hasher = engine.scheduler.tables.cache._hasher
        hasher._seed = 0
        roots.add(hasher.root(engine.policy.key(0), ""))
    assert len(roots) == len(policies)


def test_weights_and_dtype_are_part_of_the_provenance(
    checkpoint: Checkpoints, make_engine: Engines
) -> None:
    roots = set()
    for options in ({}, {"dtype": "bfloat16"}):
        for seed in (0, 1):
            engine = make_engine(checkpoint("llama", seed=seed), **options)
            hasher = engine.scheduler.tables.cache._hasher
            hasher._seed = 0
            roots.add(hasher.root("dense", ""))
    assert len(roots) == 4


def test_timings_tell_a_plausible_story(checkpoint: Checkpoints, make_engine: Engines) -> None:
    engine = make_engine(checkpoint("llama"), max_num_seqs=1)
    first, second = engine.generate([some_tokens(100), some_tokens(50)], [greedy(3), greedy(30)])
    for output in (first, second):
        times = output.timings
        parts = (times.queued_s, times.prefill_s, times.ttft_s, times.decode_s, times.total_s)
        assert all(each is not None and each >= 0 for each in parts)
        queued, prefill, ttft, decode, total = (each or 0.0 for each in parts)
        assert queued + prefill == pytest.approx(ttft)
        assert ttft + decode <= total
        assert prefill > 0 and decode > 0
    assert (first.timings.total_s or 0) < (second.timings.total_s or 0)  # its own end, not all's
    assert first.stats["preemptions"] == 0


def test_timings_of_what_never_ran(checkpoint: Checkpoints, make_engine: Engines) -> None:
    engine = make_engine(checkpoint("llama"))
    generation = engine.add([3], greedy(2))
    assert generation.whole().timings.total_s is None
    engine.abort(generation.id)
    times = generation.whole().timings
    assert times.queued_s is times.ttft_s is times.prefill_s is times.decode_s is None
    assert times.total_s is not None and times.total_s >= 0
