"""Streams and aborts: the pieces join to what generate gives, and nothing stays behind."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from saccade import Engine, RequestOutput, SamplingParams
from saccade.engine.errors import RequestError

from .conftest import Checkpoints, Engines
from .engine_probe import greedy, some_tokens, tokens_of

pytestmark = pytest.mark.usefixtures("one_thread")
TEXT = "print(add(1, 2))"


@pytest.fixture
def engine(checkpoint: Checkpoints, make_engine: Engines) -> Engine:
    return make_engine(checkpoint("llama", tokenizer=True), max_num_batched_tokens=8)


def used(engine: Engine) -> set[int]:
    return set(engine.scheduler.stats().used_pages)


def joined(pieces: Iterable[RequestOutput], n: int = 1) -> list[tuple[str, list[int], int]]:
    """Per completion: text, tokens, number of logprob entries."""
    texts, tokens, entries = [""] * n, [[] for _ in range(n)], [0] * n  # type: ignore[var-annotated]
    for piece in pieces:
        for each in piece.outputs:
            texts[each.index] += each.text
            tokens[each.index] += each.token_ids
            entries[each.index] += len(each.logprobs or ())
    return list(zip(texts, tokens, entries, strict=True))


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("stop", [(), ("e", "nn"), "\ufffd\ufffd"])
def test_deltas_join_to_what_generate_gives(
    engine: Engine, n: int, stop: str | tuple[str, ...]
) -> None:
    params = SamplingParams(n=n, seed=5, max_tokens=40, logprobs=1, stop=stop)
    whole = engine.generate(TEXT, params)[0]
    pieces = list(engine.stream(TEXT, params))
    expected = [(each.text, each.token_ids, len(each.token_ids)) for each in whole.outputs]
    assert joined(pieces, n) == expected
    assert [piece.finished for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    for last, each in zip(pieces[-1].outputs, whole.outputs, strict=True):
        assert last.finish_reason == each.finish_reason and last.stop_reason == each.stop_reason
        assert last.cumulative_logprob == each.cumulative_logprob
    assert len(pieces) > 3


def test_closing_a_stream_frees_its_pages(engine: Engine) -> None:
    stream = engine.stream(TEXT, greedy(100))
    next(stream)
    assert used(engine) == {1}
    stream.close()  # type: ignore[attr-defined]
    assert used(engine) == {0} and not engine.scheduler.has_work
    for _ in engine.stream(TEXT, greedy(100)):
        break
    assert engine.scheduler.stats().finished["abort"] >= 1


def test_a_stream_is_refused_at_once(engine: Engine) -> None:
    """Not at its first output, and then nothing is queued."""
    for prompt, options in (([], {}), ([10**6], {}), (TEXT, {"attention": "sparse"})):
        with pytest.raises(RequestError):
            engine.stream(prompt, greedy(4), **options)
    with pytest.raises(RequestError, match="max_model_len"):
        engine.stream(some_tokens(600), greedy(4))
    assert not engine.scheduler.has_work and not engine._live


def test_a_stream_that_nobody_reads_is_queued_and_then_dropped(engine: Engine) -> None:
    stream = engine.stream(TEXT, greedy(100))
    assert engine.scheduler.has_work
    engine.step()
    assert used(engine) == {1}
    del stream
    assert used(engine) == {0} and not engine.scheduler.has_work


@pytest.mark.parametrize("prompt", [[5], some_tokens(40)])
def test_prompt_logprobs_come_once(engine: Engine, prompt: list[int]) -> None:
    params = greedy(6, prompt_logprobs=1, n=2)
    whole = engine.generate(prompt, params)[0].prompt_logprobs
    found = [piece.prompt_logprobs for piece in engine.stream(prompt, params)]
    assert found == [whole, *[None] * (len(found) - 1)] and whole is not None
    assert len(whole) == len(prompt)


def test_streams_side_by_side_lose_nothing(engine: Engine) -> None:
    """A step for one stream is a step for all: the other may have ended before it is asked."""
    long, short = greedy(30, logprobs=0), greedy(4, logprobs=0)
    alone = [engine.generate(TEXT, params)[0].outputs[0] for params in (long, short)]
    first, second = engine.stream(TEXT, long), engine.stream(TEXT, short)
    early = [next(second)]  # has begun, and is not asked again before the other is done
    whole = list(first)
    assert not engine.scheduler.has_work
    late = [*early, *second]
    for pieces, expected in ((whole, alone[0]), (late, alone[1])):
        assert joined(pieces)[0][:2] == (expected.text, expected.token_ids)
        assert pieces[-1].outputs[0].finish_reason == "length"


def test_generate_within_a_stream(engine: Engine) -> None:
    expected = tokens_of(engine.generate(TEXT, greedy(12))[0])
    pieces = []
    for piece in engine.stream(TEXT, greedy(12)):
        pieces.append(piece)
        assert tokens_of(engine.generate(TEXT, greedy(5))[0])[0] == expected[0][:5]
    assert joined(pieces)[0][1] == expected[0]


def test_abort_while_running_and_while_waiting(
    checkpoint: Checkpoints, make_engine: Engines
) -> None:
    engine = make_engine(checkpoint("llama"), max_num_seqs=1)
    running = engine.add(some_tokens(20), greedy(50), request_id="a")
    waiting = engine.add(some_tokens(20), greedy(50, n=2), request_id="b")
    for _ in range(4):
        engine.step()
    assert engine.abort("b") and not engine.abort("b")
    assert waiting.finished and not running.finished
    assert engine.abort("a") and not engine.scheduler.has_work
    assert [each.finish_reason for each in waiting.whole().outputs] == ["abort", "abort"]
    answer = running.whole().outputs[0]
    assert (len(answer.token_ids), answer.finish_reason) == (4, "abort")
    assert not engine.abort("never") and used(engine) == {0}


def test_an_abort_of_all_branches_in_the_middle(engine: Engine) -> None:
    generation = engine.add(some_tokens(30), greedy(50, n=4), request_id="x")
    other = engine.add(some_tokens(30), greedy(9))
    for _ in range(8):
        engine.step()
    engine.abort("x")
    engine.scheduler.check_integrity()
    while engine.scheduler.has_work:
        engine.step()
    assert [len(each.token_ids) > 0 for each in generation.whole().outputs] == [True] * 4
    assert tokens_of(other.whole()) == tokens_of(engine.generate(some_tokens(30), greedy(9))[0])


def test_an_aborted_stream_says_so(engine: Engine) -> None:
    stream = engine.stream(TEXT, greedy(100))
    first = next(stream)
    engine.abort(first.request_id)
    (last,) = stream
    assert last.outputs[0].finish_reason == "abort" and last.outputs[0].token_ids == []


def test_request_ids(engine: Engine) -> None:
    engine.add([3], greedy(2), request_id="mine")
    with pytest.raises(RequestError, match="'mine' is already in use") as refusal:
        engine.add([3], greedy(2), request_id="mine")
    assert refusal.value.param == "request_id"
    # A name that the engine would have chosen itself is no reason to refuse somebody else.
    taken = {engine.add([4], greedy(2), request_id=f"request-{i}").id for i in range(9)}
    named = {engine.add([5], greedy(2)).id for _ in range(3)}
    assert len(taken | named) == 12
    while engine.scheduler.has_work:
        engine.step()
    assert engine.add([3], greedy(2), request_id="mine").id == "mine"  # free again


def test_priorities_decide_who_goes_first(checkpoint: Checkpoints, make_engine: Engines) -> None:
    engine = make_engine(checkpoint("llama"), max_num_seqs=1)
    late = engine.add([3], greedy(5), priority=2)
    soon = engine.add([3], greedy(5), priority=-1)
    while not soon.finished:
        engine.step()
    assert tokens_of(late.whole()) == [[]]
