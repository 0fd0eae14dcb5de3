"""Layers that keep a state: what a broken step leaves, where a prefix may be continued, how many
pages their states take, and n-grams at the borders of texts.

tests/engine/test_engine_cuts.py cuts, shares, forks and preempts; test_engine_families.py compares
with transformers.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from saccade import Engine
from saccade.engine import forward
from saccade.engine.checkpoint.ngram_config import _multipliers, _primes
from saccade.engine.config import EngineConfig
from saccade.engine.errors import CheckpointError, RequestError
from saccade.engine.look import Looker
from saccade.kernels import experts, gated_delta, key_conv, native
from saccade.kernels.ops import Implementation, Op

from .conftest import Checkpoints, Engines
from .engine_probe import Recorder, bitwise, greedy, some_tokens, tokens_of
from .test_config_json import ABSENT, read
from .test_engine_families import assert_as_theirs

pytestmark = pytest.mark.usefixtures("one_thread")
compiled = pytest.mark.skipif(
    native.chosen_isa() is None, reason="torch's own products round by batch size"
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:invalid value", "ignore:Conversion of an array")
def test_the_gpu_path_gives_the_same_tokens(
    checkpoint: Checkpoints,
    make_engine: Engines,
    interpreted: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its kernels are the ones in Triton; prompts are cut, and one ends before the other."""
    ran: set[str] = set()

    def noted(op: Op) -> Op:
        def run(*args: Any) -> Any:
            ran.update(name for name, why in op.refusals(*args).items() if why is None)
            return op(*args)

        return replace(op, implementations=(Implementation("noted", run, lambda *_: None),))

    def answers(device: str) -> list[list[list[int]]]:
        folder = checkpoint("qwen3_next_hybrid")
        engine = make_engine(folder, device=device, max_num_batched_tokens=8)
        prompts = [some_tokens(length, seed=length) for length in (13, 3)]
        outputs = engine.generate(prompts, [greedy(2), greedy(4)])
        assert [output.error for output in outputs] == [None, None]
        return [tokens_of(output) for output in outputs]

    expected = answers("cpu")
    monkeypatch.setattr(native, "kernels", lambda: None)
    for module, name in (
        (gated_delta, "GATED_DELTA"),
        (key_conv, "KEY_CONV"),
        (experts, "EXPERTS"),
    ):
        monkeypatch.setattr(module, name, noted(getattr(module, name)))
    assert answers("cuda") == expected
    assert ran == {"triton"}


@compiled
@pytest.mark.parametrize("family", ["qwen3_next_hybrid", "qwen4"])
@pytest.mark.parametrize("broken", [1, 2, 3, 9, 10, 12])
def test_a_step_that_broke_in_a_layer_is_run_again(
    checkpoint: Checkpoints,
    make_engine: Engines,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    broken: int,
) -> None:
    """Layers before the broken one have moved their states on; the answers do not show it."""
    folder = checkpoint(family)
    prompts = [some_tokens(length, seed=length) for length in (9, 5)]  # both in every step

    def answers() -> list[torch.Tensor]:
        engine = make_engine(folder, max_num_batched_tokens=16)
        recorder = Recorder(engine)
        outputs = engine.generate(prompts, greedy(6))
        assert [output.error for output in outputs] == [None, None]
        return [recorder.matrix(f"{output.request_id}-0") for output in outputs]

    expected, calls, real = answers(), 0, forward.gated_delta

    def breaks(*args: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        out = real(*args)
        if calls == broken:
            raise ZeroDivisionError("this layer breaks, once")
        return out

    monkeypatch.setattr(forward, "gated_delta", breaks)
    found = answers()
    assert calls > broken
    assert all(bitwise(a, b) for a, b in zip(found, expected, strict=True))


def test_states_take_the_pages_of_one_step_and_prefixes_are_reused(
    checkpoint: Checkpoints, make_engine: Engines
) -> None:
    engine = make_engine(checkpoint("qwen4"), max_num_batched_tokens=32)
    attention, states = sorted(engine.scheduler.tables.groups, key=lambda g: g.window or 0)
    assert (attention.window, states.window) == (None, 1)
    at_work = engine.scheduler.tables.groups.index(states)
    prompt, most = some_tokens(100), 0
    request = engine.add(prompt, greedy(5))
    while engine.scheduler.has_work:
        engine.step()
        most = max(most, engine.scheduler.stats().used_pages[at_work])
    assert most <= 4  # of 7: a step's tokens lie in three, and those of the one before in another
    assert request.whole().num_cached_tokens == 0
    again = engine.generate([*prompt[:90], 5], greedy(5))[0]
    assert again.num_cached_tokens == 80  # whole pages of 16, a state behind the last


@pytest.mark.parametrize("tail", [[1], [1, 7], [7, 1, 9], [1, 1, 5, 6, 7, 8]])
def test_no_ngram_reaches_across_the_end_of_a_text(
    checkpoint: Checkpoints, make_engine: Engines, tail: list[int]
) -> None:
    folder = checkpoint("qwen4")
    prompt = [*some_tokens(13), *tail, 4, 4, *tail, 9]
    for budget in (2, 16, 64):
        engine = make_engine(folder, max_num_batched_tokens=budget)
        recorder = Recorder(engine)
        output = engine.generate(prompt, greedy(3))[0]
        tokens = [*prompt, *tokens_of(output)[0]]
        assert_as_theirs(folder, tokens, recorder, f"{output.request_id}-0")


def test_hashes_are_as_theirs() -> None:
    """Figures of transformers 5.23, of 128 tokens and seed 1234."""
    primes = _primes(50)
    assert [next(primes) for _ in range(9)] == [53, 59, 61, 67, 71, 73, 79, 83, 89]
    assert _multipliers(128, 3, 1234) == (
        40323955908725927,
        35454616657218691,
        55314113489879455,
    )
    assert _multipliers(128, 3, 1234 + 10007)[0] == 53266542685384603


def test_maps_show_the_layers_that_attend(checkpoint: Checkpoints) -> None:
    looker = Looker(EngineConfig(checkpoint("qwen4"), kv_cache_memory=1 << 22))
    with pytest.raises(RequestError, match="layer 0 keeps a state, not keys"):
        looker.look(some_tokens(40), layers=[0])
    found = looker.look(some_tokens(40))
    assert {head.layer for head in found.heads} == {2}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ple_layer_ids": [3]}, "ple_layer_ids: expected layers of linear_attention alone"),
        ({"ple_layer_ids": "1"}, "ple_layer_ids: expected a list of layers"),
        ({"ple_embed_dim": 30}, "ple_embed_dim: expected a multiple of 8, found 30"),
        ({"eos_token_id": ABSENT}, "eos_token_id: missing: no n-gram reaches across"),
        ({"output_gate_type": "tanh"}, "output_gate_type: 'tanh' is not supported"),
        ({"linear_num_key_heads": 3}, "linear_num_key_heads: 3 does not divide"),
    ],
)
def test_errors_name_the_key(
    checkpoint: Checkpoints, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    base = json.loads((checkpoint("qwen4") / "config.json").read_text())
    with pytest.raises(CheckpointError, match=rf"config\.json.*{words}"):
        read(tmp_path, base, **changes)


def test_a_gate_by_sigmoid(checkpoint: Checkpoints, make_engine: Engines) -> None:
    folder = checkpoint("qwen4", output_gate_type="sigmoid", linear_num_key_heads=4)
    engine = make_engine(folder)
    recorder = Recorder(engine)
    output = engine.generate(some_tokens(40), greedy(3))[0]
    tokens = [*some_tokens(40), *tokens_of(output)[0]]
    assert_as_theirs(folder, tokens, recorder, f"{output.request_id}-0")
    with Engine(folder, kv_cache_memory=1 << 22, attention="dense") as dense:
        assert dense.policy.text == "dense"
