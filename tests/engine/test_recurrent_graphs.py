"""Layers that carry something from token to token, in graphs of decode steps: with the emulator of
graph_emulator.py, which replays in host memory and refuses whatever would wait for a GPU.
"""

from __future__ import annotations

from typing import Any

import pytest

from saccade import Engine, RequestOutput, SamplingParams
from saccade.engine import graphs
from saccade.engine.graphs import DecodeGraphs
from saccade.kernels import native

from .conftest import Checkpoints, Engines, check_idle
from .engine_probe import Recorder, bitwise, greedy, small_pool, some_tokens, tokens_of
from .graph_emulator import Emulator, Tape

pytestmark = pytest.mark.filterwarnings(
    "ignore:invalid value", "ignore:divide by zero", "ignore:Conversion of an array"
)
OPTIONS: dict[str, Any] = {"max_model_len": 256, "page_size": 16, "max_num_seqs": 4}


def graphs_of(engine: Engine) -> DecodeGraphs:
    """Those that it made, none of which was refused."""
    made = engine._runner.graphs
    assert made is not None and not made.refusals
    return made


def together(engine: Engine, second: int = 4) -> list[list[list[int]]]:
    """Two requests, the other of so many tokens; one fills a page on the way."""
    prompts = [some_tokens(13, seed=1), some_tokens(3, seed=2)]
    found = engine.generate(prompts, [greedy(7), greedy(second)])
    assert [each.error for each in found] == [None, None]
    return [tokens_of(each) for each in found]


SLOW = ("qwen3_next_hybrid", "qwen3_5_moe", "qwen4", "moba_kconv")
FAMILIES = ["qwen3_5_hybrid", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


@pytest.mark.parametrize("family", FAMILIES)
def test_replayed_steps_give_the_same_tokens(
    checkpoint: Checkpoints,
    make_engine: Engines,
    emulated: None,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
) -> None:
    """Those of the processor: with states, experts, n-grams of the text, or convolved keys."""
    folder = checkpoint(family)
    expected = together(make_engine(folder, device="cpu", **OPTIONS))
    monkeypatch.setattr(native, "kernels", lambda: None)
    engine = make_engine(folder, device="cuda", **OPTIONS)
    assert together(engine) == expected
    assert graphs_of(engine).replays >= 3


def crowd(engine: Engine) -> tuple[Recorder, list[RequestOutput]]:
    """Two completions of a prompt, and requests that take pages from them and from each other."""
    recorder, begin = Recorder(engine), some_tokens(17, seed=3)
    sampled = SamplingParams(n=2, temperature=1.0, seed=5, max_tokens=8, ignore_eos=True)
    wishes = [(begin[:14], sampled), ([9, *begin[:14]], greedy(8)), ([*begin, 7, 9], greedy(4))]
    generations = []
    for prompt, params in wishes:
        generations.append(engine.add(prompt, params))
        engine.step()
    while engine.scheduler.has_work:
        engine.step()
        engine.scheduler.check_integrity()
    return recorder, [generation.whole() for generation in generations]


@pytest.mark.slow
def test_in_a_crowd_replays_change_no_bit(
    checkpoint: Checkpoints,
    make_engine: Engines,
    interpreted: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Forks, preemption, and hits of what was read before it, with graphs and without."""
    layers = {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]}
    folder = checkpoint("qwen3_5_hybrid", **layers)
    options = small_pool(folder, 5, max_num_seqs=4, max_num_batched_tokens=64)
    monkeypatch.setattr(native, "kernels", lambda: None)
    plain, expected = crowd(make_engine(folder, device="cuda", **options))
    monkeypatch.setattr(graphs, "recorder", lambda where: Emulator())
    engine = make_engine(folder, device="cuda", **options)
    replayed, found = crowd(engine)
    assert [each.outputs for each in found] == [each.outputs for each in expected]
    for name, rows in plain.rows.items():
        assert rows.keys() == replayed.rows[name].keys()
        assert all(bitwise(row, replayed.rows[name][at]) for at, row in rows.items())
    stats = engine.scheduler.stats()
    assert graphs_of(engine).replays >= 5
    assert engine._runner.progress == len(engine._runner.shapes) * len(replayed.counts)
    assert min(stats.preemptions, stats.forks, stats.hit_tokens) > 0
    check_idle(engine)


@pytest.mark.slow
@pytest.mark.parametrize("part", [0.5, 1.0])
def test_a_replay_that_breaks_is_run_again(
    checkpoint: Checkpoints,
    make_engine: Engines,
    emulated: None,
    monkeypatch: pytest.MonkeyPatch,
    part: float,
) -> None:
    """Within it, when some layers have moved their states on, or behind it, when all have."""
    monkeypatch.setattr(native, "kernels", lambda: None)
    folder = checkpoint("qwen3_5_hybrid")
    expected = together(make_engine(folder, device="cuda", **OPTIONS), 7)
    real, count = Tape.replay, 0

    def breaks(tape: Tape) -> None:
        nonlocal count
        count += 1
        if count not in (1, 3):
            return real(tape)
        whole, tape.done = tape.done, tape.done[: round(part * len(tape.done))]
        real(tape)
        tape.done = whole
        raise ZeroDivisionError("this replay breaks")

    monkeypatch.setattr(Tape, "replay", breaks)
    assert together(make_engine(folder, device="cuda", **OPTIONS), 7) == expected
    assert count > 5
