"""Engine.generate: every form of prompt and parameter, and what comes back."""

from __future__ import annotations

from pathlib import Path

import pytest

from saccade import Engine, RequestOutput, SamplingParams
from saccade.engine.errors import CheckpointError, RequestError

from .conftest import Checkpoints, Engines
from .engine_probe import greedy, some_tokens, tokens_of

pytestmark = pytest.mark.usefixtures("one_thread")
TEXT = "def add(first, second):"


@pytest.fixture
def engine(checkpoint: Checkpoints, make_engine: Engines) -> Engine:
    return make_engine(checkpoint("llama", tokenizer=True))


def one(outputs: list[RequestOutput]) -> RequestOutput:
    (output,) = outputs
    return output


def test_every_form_of_prompt(engine: Engine) -> None:
    assert engine.tokenizer is not None
    ids = engine.tokenizer.encode(TEXT)
    params = greedy(5)
    expected = tokens_of(one(engine.generate(TEXT, params)))
    for prompt in (TEXT, [TEXT], ids, [ids], tuple(ids), (tuple(ids),), [tuple(ids)]):
        output = one(engine.generate(prompt, params))
        assert tokens_of(output) == expected and output.prompt_token_ids == ids
        assert output.prompt == (TEXT if prompt in (TEXT, [TEXT]) else None)
    both = engine.generate([ids[:4], TEXT, [5]], params)
    assert [output.prompt_token_ids for output in both] == [ids[:4], ids, [5]]
    assert tokens_of(both[1]) == expected
    assert engine.generate([], params) == []


def test_the_prompt_is_copied(engine: Engine) -> None:
    ids = some_tokens(20)
    generation = engine.add(ids, greedy(3))
    kept = list(ids)
    ids[:] = [0] * 20
    while not generation.finished:
        engine.step()
    assert generation.whole().prompt_token_ids == kept


def test_parameters_for_each_prompt(engine: Engine) -> None:
    prompts = [some_tokens(5), some_tokens(6), some_tokens(7)]
    outputs = engine.generate(prompts, [greedy(count) for count in (1, 9, 4)])
    assert [len(tokens_of(output)[0]) for output in outputs] == [1, 9, 4]
    assert [output.outputs[0].finish_reason for output in outputs] == ["length"] * 3
    with pytest.raises(RequestError, match="2 sampling_params for 3 prompts"):
        engine.generate(prompts, [greedy(1), greedy(2)])
    default = engine.generate(prompts[0])[0].outputs[0]
    assert len(default.token_ids) <= 256


def test_a_seed_decides_and_the_n_completions_differ(engine: Engine) -> None:
    prompt = some_tokens(20)
    params = SamplingParams(n=4, seed=3, max_tokens=12, ignore_eos=True)
    first = one(engine.generate(prompt, params))
    again = engine.generate([some_tokens(9), prompt, some_tokens(30)], params)[1]
    assert tokens_of(first) == tokens_of(again)
    assert len({tuple(each) for each in tokens_of(first)}) == 4
    assert [each.index for each in first.outputs] == [0, 1, 2, 3]
    single = SamplingParams(seed=3, max_tokens=12, ignore_eos=True)
    assert tokens_of(one(engine.generate(prompt, single))) == tokens_of(first)[:1]
    unseeded = SamplingParams(max_tokens=12, ignore_eos=True)
    runs = [tuple(tokens_of(one(engine.generate(prompt, unseeded)))[0]) for _ in range(3)]
    assert len(set(runs)) > 1
    assert (
        len({tuple(each) for each in tokens_of(one(engine.generate(prompt, greedy(4, n=3))))}) == 1
    )


@pytest.mark.parametrize("seqs", [1, 2, 8])
def test_more_completions_than_the_engine_runs_at_once(
    checkpoint: Checkpoints, make_engine: Engines, seqs: int
) -> None:
    engine = make_engine(checkpoint("llama", tokenizer=True), max_num_seqs=seqs)
    params = SamplingParams(n=5, seed=1, max_tokens=6, ignore_eos=True)
    output = one(engine.generate(some_tokens(40), params))
    assert [len(each) for each in tokens_of(output)] == [6] * 5
    wide = make_engine(checkpoint("llama", tokenizer=True))
    assert tokens_of(output) == tokens_of(one(wide.generate(some_tokens(40), params)))


def test_stop_strings_across_tokens(engine: Engine) -> None:
    free = one(engine.generate(TEXT, greedy(60))).outputs[0]
    assert engine.tokenizer is not None
    widest = max(len(engine.tokenizer.text_of(token)) for token in free.token_ids)
    stop = free.text[20 : 20 + widest + 1]  # longer than any token: it must cross a border
    cut = free.text.index(stop)
    for stops in (stop, [stop], ["never \u1234", stop]):
        answer = one(engine.generate(TEXT, greedy(60, stop=stops))).outputs[0]
        assert (answer.text, answer.finish_reason) == (free.text[:cut], "stop")
        assert answer.stop_reason == stop
        assert len(answer.token_ids) < 60
        assert answer.token_ids == free.token_ids[: len(answer.token_ids)]
    kept = greedy(60, stop=stop, include_stop_str_in_output=True)
    assert one(engine.generate(TEXT, kept)).outputs[0].text == free.text[:cut] + stop
    # Completed by the very token that reaches the length limit: the stop string counts.
    last = greedy(len(answer.token_ids), stop=stop)
    assert one(engine.generate(TEXT, last)).outputs[0].finish_reason == "stop"


def test_stop_tokens_and_their_minimum(engine: Engine) -> None:
    prompt = some_tokens(20)
    free = tokens_of(one(engine.generate(prompt, greedy(20))))[0]
    stop = next(token for token in free[2:] if token not in free[:2])
    answer = one(engine.generate(prompt, greedy(20, stop_token_ids=[stop]))).outputs[0]
    assert answer.token_ids == free[: free.index(stop) + 1]
    assert (answer.finish_reason, answer.stop_reason) == ("stop", stop)
    least = greedy(20, stop_token_ids=[stop], min_tokens=15)
    longer = one(engine.generate(prompt, least)).outputs[0]
    assert len(longer.token_ids) >= 15 and stop not in longer.token_ids[:15]


def test_end_of_sequence(engine: Engine) -> None:
    prompt, end = some_tokens(20), {1: 100.0}
    params = SamplingParams(temperature=0, logit_bias=end, max_tokens=7)
    answer = one(engine.generate(prompt, params)).outputs[0]
    assert (answer.token_ids, answer.finish_reason, answer.stop_reason) == ([1], "stop", None)
    assert answer.text == ""
    answer = one(engine.generate(prompt, greedy(7, logit_bias=end))).outputs[0]
    assert (answer.token_ids, answer.finish_reason) == ([1] * 7, "length")
    least = SamplingParams(temperature=0, logit_bias=end, max_tokens=7, min_tokens=3)
    answer = one(engine.generate(prompt, least)).outputs[0]
    assert (len(answer.token_ids), answer.token_ids[-1]) == (4, 1)


def test_without_a_limit_the_context_ends_it(checkpoint: Checkpoints, make_engine: Engines) -> None:
    engine = make_engine(checkpoint("llama"), max_model_len=50)
    answer = one(engine.generate(some_tokens(11), greedy(None))).outputs[0]  # type: ignore[arg-type]
    assert (len(answer.token_ids), answer.finish_reason) == (39, "length")
    answer = one(engine.generate(some_tokens(49), greedy(30))).outputs[0]
    assert (len(answer.token_ids), answer.finish_reason) == (1, "length")


def test_logprobs_add_up_and_change_no_token(engine: Engine) -> None:
    prompt = some_tokens(20)
    plain = tokens_of(one(engine.generate(prompt, greedy(8))))
    output = one(engine.generate(prompt, greedy(8, logprobs=2)))
    answer = output.outputs[0]
    assert [answer.token_ids] == plain and answer.logprobs is not None
    chosen = [entry[token] for entry, token in zip(answer.logprobs, answer.token_ids, strict=True)]
    assert all(each.rank == 1 and each.logprob <= 0 for each in chosen)
    assert all(len(entry) == 2 for entry in answer.logprobs)
    assert answer.cumulative_logprob == pytest.approx(sum(each.logprob for each in chosen))
    assert engine.tokenizer is not None
    assert chosen[0].decoded_token == engine.tokenizer.text_of(answer.token_ids[0])
    assert output.prompt_logprobs is None


def test_prompt_logprobs_of_a_long_prompt_however_it_is_cut(
    checkpoint: Checkpoints, make_engine: Engines
) -> None:
    folder, prompt = checkpoint("llama"), some_tokens(400)
    params = greedy(2, prompt_logprobs=1, n=2)
    engine = make_engine(folder)
    whole = one(engine.generate(prompt, params))
    again = one(engine.generate(prompt, params))
    cut = one(make_engine(folder, max_num_batched_tokens=37).generate(prompt, params))
    assert whole.prompt_logprobs is not None and len(whole.prompt_logprobs) == 400
    assert whole.prompt_logprobs[0] is None
    assert whole.prompt_logprobs == again.prompt_logprobs == cut.prompt_logprobs
    assert again.num_cached_tokens == 0  # every row's logits were needed
    assert one(engine.generate([5], params)).prompt_logprobs == [None]


def test_without_detokenizing_there_is_no_text(engine: Engine) -> None:
    with_text = one(engine.generate(TEXT, greedy(6))).outputs[0]
    answer = one(engine.generate(TEXT, greedy(6, detokenize=False))).outputs[0]
    assert (answer.text, answer.token_ids) == ("", with_text.token_ids)
    assert with_text.text
    with pytest.raises(RequestError, match="stop strings need detokenize"):
        greedy(6, detokenize=False, stop="x")


def test_without_a_tokenizer_there_are_token_ids_alone(
    checkpoint: Checkpoints, make_engine: Engines
) -> None:
    engine = make_engine(checkpoint("llama"))
    assert one(engine.generate([3, 4], greedy(2))).outputs[0].text == ""
    with pytest.raises(RequestError, match="no tokenizer") as refusal:
        engine.generate("text", greedy(2))
    assert refusal.value.param == "prompt"


def test_a_progress_bar_on_request(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    engine.generate([[3], [4], [5]], greedy(2), progress=True)
    assert "3/3" in capsys.readouterr().err
    engine.generate([[3], [4]], greedy(2))
    assert capsys.readouterr().err == ""


def test_options_are_checked(checkpoint: Checkpoints, tmp_path: Path) -> None:
    folder = checkpoint("llama")
    with pytest.raises(ValueError, match=r"no option 'max_len'.*max_model_len"):
        Engine(folder, max_len=5)
    with pytest.raises(ValueError, match="no option 'model_name'"):
        Engine(folder, model_name="x")
    for name, value in (
        ("max_num_seqs", 0), ("max_model_len", 2.5), ("kv_cache_memory", True), ("dtype", "int8"),
        ("device", "cuda"), ("page_size", 24), ("long_prefill_share", 0.0), ("attention", 7),
        ("alone_step_seconds", 0.0), ("alone_step_seconds", True), ("alone_step_seconds", "1"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=name):
            Engine(folder, **{name: value})
    with pytest.raises(CheckpointError, match="nothing_here"):
        Engine(tmp_path / "nothing_here")


def test_the_context_manager_ends_what_is_left(
    checkpoint: Checkpoints, make_engine: Engines
) -> None:
    with make_engine(checkpoint("llama")) as engine:
        generation = engine.add(some_tokens(20), greedy(50))
        engine.step()
    assert generation.finished
    assert generation.whole().outputs[0].finish_reason == "abort"
    assert len(tokens_of(one(engine.generate([3], greedy(2))))[0]) == 2  # close is not the end
