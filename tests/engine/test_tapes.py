"""Tapes of decode steps on the processor: what they do again, what they refuse, whose memory they
use."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from saccade import Engine
from saccade.engine import graphs
from saccade.engine.graphs import TapeRecorder
from saccade.engine.tapes import Pool, Tape
from saccade.kernels import native
from saccade.kernels.activation import silu_mul
from saccade.kernels.norm import rms_norm
from saccade.kernels.store import zeroed

from ..methods.every_method import NAMES, small
from .conftest import Checkpoints, Engines
from .engine_probe import Recorder, bitwise, greedy, some_tokens

pytestmark = pytest.mark.skipif(native.kernels() is None, reason="no compiled kernels here")

# Methods that look at what tensors hold: how many rows see far keys, which experts are chosen.
REFUSED = {"adaptive", "mosa", "msa", "qsa"}


def made(engine: Engine) -> graphs.DecodeGraphs:
    """An engine's tapes, of which there are none before it decodes."""
    assert engine._runner.graphs is not None
    return engine._runner.graphs


@pytest.mark.parametrize("name", NAMES)
def test_played_steps_give_the_same_bits(
    checkpoint: Checkpoints, make_engine: Engines, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Two requests, one of which ends first, beside an engine without tapes."""
    method = small(name)
    options: dict[str, Any] = {"max_model_len": 256, "attention": method.spec}
    prompts = [some_tokens(method.before + 18, seed=1), some_tokens(3, seed=2)]
    monkeypatch.setenv(graphs.TAPES, "0")
    plain = make_engine(checkpoint(method.family), **options)
    assert plain._runner.graphs is None
    monkeypatch.delenv(graphs.TAPES)
    engine = make_engine(checkpoint(method.family), **options)
    seen = [Recorder(plain), Recorder(engine)]
    outputs = [each.generate(prompts, [greedy(9), greedy(14)]) for each in (plain, engine)]
    for a, b in zip(*outputs, strict=True):
        assert a.outputs[0].token_ids == b.outputs[0].token_ids
        id = f"{a.request_id}-0", f"{b.request_id}-0"
        assert bitwise(seen[0].matrix(id[0]), seen[1].matrix(id[1]))
    assert plain.reads.as_dict() == engine.reads.as_dict()
    if name in REFUSED:
        assert made(engine).refusals and not made(engine).replays
    else:
        assert not made(engine).refusals and made(engine).replays >= 4


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    """As in an engine."""
    with torch.inference_mode():
        yield


def record(call: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, Callable[[], None]]:
    """What a call gave, and what does it again."""
    recording = TapeRecorder().capture(call)
    assert recording.refusal is None and recording.replay is not None
    return recording.result, recording.replay


def test_kernels_and_operators_are_done_again() -> None:
    """In their order, also those that change a tensor in place, and views that are copies."""
    x, weight = torch.randn(3, 8), torch.rand(8)

    def call() -> torch.Tensor:
        normed = rms_norm(x, weight, 1e-5)
        wide = torch.cat([normed, normed.T.contiguous().T * 2], 1)
        gated = silu_mul(wide)
        gated[1] += 1
        return rms_norm(gated.to(torch.float32).flip(0).contiguous(), weight, 1e-5)

    found, replay = record(call)
    assert torch.equal(found, call())
    for seed in range(3):
        x.copy_(torch.randn(3, 8, generator=torch.Generator().manual_seed(seed)))
        replay()
        assert torch.equal(found, call())


def test_memory_of_kernels_is_kept() -> None:
    """Also what torch does not know of before it is given a shape."""
    x, weight = torch.randn(64, 64), torch.rand(64)

    def call() -> torch.Tensor:
        before = zeroed((64, 64), torch.float32)
        before += x
        odd = torch.empty_like(before.T)
        odd.copy_(before)
        return rms_norm(rms_norm(before, weight, 1e-5) + odd, weight, 1e-5)

    found, replay = record(call)
    noise = [torch.randn(64, 64) for _ in range(8)]
    x.mul_(3)
    replay()
    assert torch.equal(found, call()) and len(noise) == 8


@pytest.mark.parametrize(
    "looks",
    [
        lambda x: x * x.sum().item(),
        lambda x: x[x > 0],
        lambda x: x + sum(x[0].tolist()),
        lambda x: x[x.argmax(1).nonzero().flatten()],
        lambda x: x + torch.tensor([1.0] * x.shape[1]),
        lambda x: x if x.sum() > 0 else -x,
    ],
)
def test_what_looks_at_tensors_is_refused(looks: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """It is computed all the same."""
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    recording = TapeRecorder().capture(lambda: looks(x))
    assert recording.replay is None and recording.refusal
    assert torch.equal(recording.result, looks(x))


def test_memory_is_used_again() -> None:
    """That of tensors that are gone, by one tape and by the next; never that of a result."""
    pool, x, weight = Pool(), torch.randn(4, 1024), torch.rand(1024)

    def call() -> torch.Tensor:
        y = x
        for _ in range(20):
            y = rms_norm(y, weight, 1e-5)
        return y

    tapes = [Tape(pool) for _ in range(3)]
    results = [tape.record(call) for tape in tapes]
    assert pool.nbytes <= (2 + 2) * x.nbytes  # two at work, and the results of the others
    expected = call()
    for tape, result in zip(tapes, results, strict=True):
        result.zero_()
        tape.play()
        assert torch.equal(result, expected)


def test_tapes_are_recorded_in_inference_mode() -> None:
    """Outside, `tolist` would not be seen."""
    with torch.inference_mode(False), pytest.raises(RuntimeError, match="inference mode"):
        TapeRecorder().capture(lambda: torch.zeros(1))


def test_an_error_ends_the_recording() -> None:
    """What this thread does afterwards is on no tape; nor is what another does meanwhile."""
    x, weight = torch.randn(2, 8), torch.rand(8)

    def broken() -> torch.Tensor:
        rms_norm(x, weight, 1e-5)
        raise RuntimeError("on purpose")

    tape = Tape(Pool())
    with pytest.raises(RuntimeError, match="on purpose"):
        tape.record(broken)
    count = len(tape._calls)
    rms_norm(x, weight, 1e-5)
    assert count == len(tape._calls) == 1

    def crowded() -> torch.Tensor:
        other = threading.Thread(target=lambda: rms_norm(x, weight, 1e-5))
        other.start()
        other.join()
        return rms_norm(x, weight, 1e-5)

    tape = Tape(Pool())
    tape.record(crowded)
    assert len(tape._calls) == 1


def test_no_tapes_are_made_where_they_are_forbidden(
    checkpoint: Checkpoints, make_engine: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor where the torch references serve."""
    monkeypatch.setattr(native, "kernels", lambda: None)
    assert make_engine(checkpoint("llama"))._runner.graphs is None
