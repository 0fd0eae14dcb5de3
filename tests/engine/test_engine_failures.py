"""An error belongs to a request: refusals, exceptions and NaN leave the others alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from saccade import Engine
from saccade.engine.errors import CapacityError, RequestError
from saccade.engine.runner import StepResult
from saccade.engine.step_plan import Chunk, PageCopy

from .conftest import Checkpoints, Engines
from .engine_probe import Recorder, bitwise, greedy, small_pool, some_tokens, tokens_of

pytestmark = pytest.mark.usefixtures("one_thread")
PROMPTS = [some_tokens(length, seed=length) for length in (20, 37, 50)]
Run = Callable[[Sequence[Chunk], Sequence[PageCopy]], StepResult]


@pytest.fixture
def engine(checkpoint: Checkpoints, make_engine: Engines) -> Engine:
    return make_engine(checkpoint("llama", tokenizer=True), max_model_len=100)


def right(engine: Engine, prompt: list[int], count: int = 6) -> list[list[int]]:
    """What another engine, which nothing has happened to, answers."""
    with Engine(engine.config.model, kv_cache_memory=1 << 20) as fresh:
        return tokens_of(fresh.generate(prompt, greedy(count))[0])


def break_step(
    engine: Engine, number: int, error: BaseException, victim: int | None = None
) -> None:
    """From the numbered run of the model on, each run of a victim spoils what it should write, and
    raises.

    victim: a chunk of that first broken run (its request is the one); None: every request of it.
    """
    run: Run = engine._runner.run
    count = 0
    victims: set[str] = set()

    def broken(chunks: Sequence[Chunk], copies: Sequence[PageCopy]) -> StepResult:
        nonlocal count
        count += 1
        if count == number:
            chosen = chunks if victim is None else [chunks[victim % len(chunks)]]
            victims.update(chunk.request.id for chunk in chosen)
        if victims.isdisjoint(chunk.request.id for chunk in chunks):
            return run(chunks, copies)
        for chunk in chunks:  # but nothing that an earlier step has written
            for group, table in enumerate(chunk.request.pages):
                spoil(engine, group, table[-(-chunk.start // engine.config.page_size) :])
        raise error

    engine._runner.run = broken  # type: ignore[method-assign]


def spoil(engine: Engine, group: int, pages: list[int]) -> None:
    cache = engine._runner._cache
    for layer, memory in enumerate(cache.layers):
        if cache.group_of[layer] == group:
            memory.k[pages] = memory.v[pages] = math.nan


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ([], "at least one token"),
        ("", "at least one token"),
        ([3, 320], "from 0 to 319, got 320 at position 1"),
        ([-1], "got -1 at position 0"),
        ([3, True], "position 1"),
        ([3, 2.0], "position 1"),
        ({3: 4}, "list of token ids"),
        (b"abc", "list of token ids"),
        (range(3), "list of token ids"),
        (None, "list of token ids"),
        ("lone \ud800", "lone surrogate"),
        (some_tokens(100), "100 tokens.*max_model_len=100"),
        ("word " * 300, "tokens.*max_model_len=100"),
    ],
)
def test_a_refused_prompt_leaves_nothing_behind(engine: Engine, prompt: Any, words: str) -> None:
    with pytest.raises(RequestError, match=words) as refusal:
        engine.add(prompt, greedy(3))
    assert refusal.value.param == "prompt"
    # The third of four: the first two must not stay in the queue.
    with pytest.raises(RequestError, match=words):
        engine.generate([PROMPTS[0], "text", prompt, PROMPTS[1]], greedy(3))
    assert not engine.scheduler.has_work and not engine._live and not engine._branches
    assert tokens_of(engine.generate(PROMPTS[0], greedy(6))[0]) == right(engine, PROMPTS[0])


def test_refused_parameters_leave_nothing_behind(engine: Engine) -> None:
    for params in (greedy(3, stop_token_ids=[320]), greedy(3, logit_bias={400: 1.0})):
        with pytest.raises(RequestError, match="from 0 to 319"):
            engine.generate(PROMPTS, [greedy(3), greedy(3), params])
        assert not engine.scheduler.has_work


@pytest.mark.parametrize(
    ("field", "value"),
    [("priority", "high"), ("priority", 1.5), ("priority", True), ("priority", math.nan),
     ("cache_salt", 7), ("cache_salt", None), ("cache_salt", "\ud800")],
)  # fmt: skip
def test_labels_that_would_break_the_queue_are_refused(
    engine: Engine, field: str, value: Any
) -> None:
    waiting = engine.add(PROMPTS[0], greedy(3))
    with pytest.raises(RequestError) as refusal:
        engine.add(PROMPTS[1], greedy(3), **{field: value})
    assert refusal.value.param == field
    while engine.scheduler.has_work:
        engine.step()
    assert len(tokens_of(waiting.whole())[0]) == 3


def test_a_prompt_beyond_all_memory(checkpoint: Checkpoints, make_engine: Engines) -> None:
    engine = make_engine(checkpoint("llama"), **small_pool(checkpoint("llama"), 3))
    assert engine.memory.max_model_len == 48
    with pytest.raises((RequestError, CapacityError), match=r"60 tokens.*48"):
        engine.generate(some_tokens(60), greedy(2))
    assert len(tokens_of(engine.generate(some_tokens(47), greedy(2))[0])[0]) == 1


@pytest.mark.parametrize("victim", [None, 0, 1])
@pytest.mark.parametrize("number", [1, 2, 5])
@pytest.mark.parametrize("family", ["llama", "qwen3_mixed"])
def test_an_exception_fails_the_request_that_raised_it(
    checkpoint: Checkpoints, make_engine: Engines, family: str, number: int, victim: int | None
) -> None:
    engine = make_engine(checkpoint(family), max_num_seqs=2, max_num_batched_tokens=32)
    break_step(engine, number, RuntimeError("boom"), victim)
    outputs = engine.generate(PROMPTS, greedy(6))
    failed = [output for output in outputs if output.error is not None]
    assert 1 <= len(failed) <= (2 if victim is None else 1)
    assert outputs[2] not in failed  # the third was not running yet
    for output in failed:
        assert (output.error, output.outputs[0].finish_reason) == ("boom", "error")
        assert engine.scheduler.stats().used_pages == (0,) * len(engine.scheduler.tables.groups)
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        if output.error is None:
            assert tokens_of(output) == right(engine, prompt)
    # No poisoned prefix: the same prompts again, and once more from the cache.
    for _ in range(2):
        for prompt, output in zip(PROMPTS, engine.generate(PROMPTS, greedy(6)), strict=True):
            assert output.error is None and tokens_of(output) == right(engine, prompt)


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_a_branch_that_raises_when_pages_are_copied_fails_alone(
    checkpoint: Checkpoints, make_engine: Engines, victim: int
) -> None:
    engine = make_engine(checkpoint("llama"))
    break_step(engine, 2, RuntimeError("boom"), victim)
    outputs = engine.generate(PROMPTS[0], greedy(5, n=3))[0].outputs
    assert sorted(each.finish_reason or "" for each in outputs) == ["error", "length", "length"]
    whole = [each.token_ids for each in outputs if each.finish_reason == "length"]
    assert whole == right(engine, PROMPTS[0], 5) * 2


def test_a_text_that_cannot_be_decoded_fails_alone(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The token is committed when its text is looked for: that must not cost others theirs."""
    bad = engine.add(PROMPTS[0], greedy(6))

    def push(*_: Any) -> None:
        raise ValueError("no such byte")

    monkeypatch.setattr(bad.branches[0].completion, "push", push)
    outputs = engine.generate(PROMPTS[1:], greedy(6))
    assert bad.finished and bad.error == "no such byte"
    assert [tokens_of(each) for each in outputs] == [right(engine, p) for p in PROMPTS[1:]]


def test_a_step_says_who_took_part_and_that_it_moves(engine: Engine) -> None:
    first, second = (engine.add(prompt, greedy(2)) for prompt in PROMPTS[:2])
    before = engine.progress
    assert engine.step() == [first, second]
    assert engine.progress == before + engine.model_config.num_layers
    engine.abort(first.id)
    assert engine.step() == [second] and second.finished
    assert engine.step() == [] and engine.progress == before + 2 * engine.model_config.num_layers


def test_an_exception_in_the_step_that_copies_forked_pages(
    checkpoint: Checkpoints, make_engine: Engines
) -> None:
    engine = make_engine(checkpoint("llama"))
    break_step(engine, 2, RuntimeError("boom"))  # the first step reads the prompt, then it forks
    output = engine.generate(PROMPTS[0], greedy(5, n=3))[0]
    assert {each.finish_reason for each in output.outputs} == {"error"}
    again = engine.generate(PROMPTS[0], greedy(6, n=3))[0]
    assert tokens_of(again) == right(engine, PROMPTS[0]) * 3


@pytest.mark.parametrize("number", [1, 3])
def test_an_interrupt_leaves_a_usable_engine(engine: Engine, number: int) -> None:
    outside = engine.add(PROMPTS[2], greedy(20))
    run = engine._runner.run
    break_step(engine, number, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        engine.generate(PROMPTS[:2], greedy(20, n=2))
    assert outside.finished and outside.error == "KeyboardInterrupt"
    assert not engine.scheduler.has_work and not engine._live and not engine._branches
    assert set(engine.scheduler.stats().used_pages) == {0}
    engine._runner.run = run  # type: ignore[method-assign]
    for prompt, output in zip(PROMPTS, engine.generate(PROMPTS, greedy(6)), strict=True):
        assert tokens_of(output) == right(engine, prompt)


def test_an_interrupt_does_not_forget_who_had_just_finished(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step's last token is committed, then the interrupt comes."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("saccade.engine.generation.Generation.take", interrupt)
        with pytest.raises(KeyboardInterrupt):
            engine.generate(PROMPTS, greedy(1))
    assert not engine._live and not engine._branches
    assert len(engine.generate(PROMPTS, greedy(2))) == 3


POISON = 99  # a token whose embedding is NaN: so are its K, V and logits


@pytest.fixture(params=["llama", "mistral", "qwen3_mixed"])
def poisoned(
    request: pytest.FixtureRequest, checkpoint: Checkpoints, make_engine: Engines
) -> Callable[..., Engine]:
    """An engine with few pages, so that those with NaN are soon somebody else's."""

    def make(pages: int, **options: Any) -> Engine:
        folder = checkpoint(request.param)
        engine = make_engine(folder, **small_pool(folder, pages, **options))
        engine._runner._model.embedding[POISON] = math.nan
        return engine

    return make


@pytest.mark.parametrize("attention", ["dense", "window(size=9, sinks=2)", "chunked(5, 7)"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_request_with_nan_fails_alone_and_its_pages_are_clean_again(
    poisoned: Callable[..., Engine], attention: str, dtype: str
) -> None:
    options = {"attention": attention, "dtype": dtype, "max_num_batched_tokens": 24}
    reference = poisoned(30, **options, enable_prefix_caching=False)
    expected = Recorder(reference)
    goods = [[token for token in prompt if token != POISON] for prompt in PROMPTS]
    params = greedy(6, logit_bias={POISON: -100.0})  # or else it may be sampled
    wanted = reference.generate(goods, params)
    engine = poisoned(7, **options)
    for at in (0, 16, len(goods[2]) - 3):  # near the end, for windows forget what is far
        bad = [*goods[2][:at], POISON, *goods[2][at:]]
        recorder = Recorder(engine, compare=False)
        outputs = engine.generate([goods[0], bad, goods[1], goods[2]], params)
        assert [output.error for output in (outputs[0], *outputs[2:])] == [None] * 3
        if at > 16:
            assert "not finite" in str(outputs[1].error)
            assert outputs[1].outputs[0].finish_reason == "error"
        for output, alone in zip((outputs[0], *outputs[2:]), wanted, strict=True):
            assert tokens_of(output) == tokens_of(alone)
            rows = expected.rows[f"{alone.request_id}-0"]
            for position, row in recorder.rows[f"{output.request_id}-0"].items():
                assert bitwise(row, rows[position])
        engine._runner.run = recorder._run  # type: ignore[method-assign]


def test_a_prompt_row_that_is_nan_fails_alone(poisoned: Callable[..., Engine]) -> None:
    engine = poisoned(40)
    bad = [*PROMPTS[0][:5], POISON, *PROMPTS[0][5:]]
    params = greedy(4, prompt_logprobs=0)
    outputs = engine.generate([bad, PROMPTS[1], bad], [params, params, greedy(4, n=2)])
    assert [output.error is not None for output in outputs] == [True, False, True]
    assert outputs[0].prompt_logprobs is None and outputs[1].prompt_logprobs is not None
    assert torch.tensor(tokens_of(outputs[1])).shape == (1, 4)


@pytest.mark.parametrize("attention", ["dense", "window(size=50, sinks=2)", "chunked(50, 100)"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_who_begins_like_a_request_of_nan_is_not_harmed(
    poisoned: Callable[..., Engine], attention: str, dtype: str
) -> None:
    """While a long prompt with NaN is still being read, its pages before the NaN must be sound.

    A weight of 0 times NaN is NaN, so that within a step NaN may also reach rows before it.
    """
    clean = [token for token in some_tokens(150, seed=5) if token != POISON]
    tail = [token for token in some_tokens(40, seed=6) if token != POISON]
    params = greedy(4, logit_bias={POISON: -100.0})
    options = {"attention": attention, "dtype": dtype, "max_num_batched_tokens": 128}
    reference = poisoned(60, **options, enable_prefix_caching=False)
    expected = tokens_of(reference.generate(clean[:100] + tail, params)[0])
    engine = poisoned(60, **options)
    bad = engine.add([*clean[:100], POISON, *clean[100:], *tail], params)
    engine.step()
    output = engine.generate(clean[:100] + tail, params)[0]
    assert output.error is None and tokens_of(output) == expected
    while engine.scheduler.has_work:
        engine.step()
    assert "not finite" in str(bad.error)
    again = engine.generate(clean[:100] + tail, params)[0]
    assert again.num_cached_tokens > 0 and tokens_of(again) == expected


@pytest.mark.parametrize("attention", ["dense", "chunked(8, 12)"])
def test_nan_is_found_beside_longer_neighbours(
    poisoned: Callable[..., Engine], attention: str
) -> None:
    """For whom chunked attention visits more keys: their empty pieces must not hide it."""
    clean = [token for token in some_tokens(90, seed=5) if token != POISON]
    params = greedy(2, logit_bias={POISON: -100.0})
    outputs = poisoned(60, attention=attention).generate(
        [[*clean[:20], POISON], clean, clean[:30]], params
    )
    assert [output.error is not None for output in outputs] == [True, False, False]
