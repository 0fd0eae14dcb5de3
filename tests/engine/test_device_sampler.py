"""Sampling on the device gives the tokens of sampling on the host, from the same logits."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from saccade.engine import device_sampler
from saccade.engine.params import SamplingParams
from saccade.engine.sampler import Sampler
from saccade.engine.sampler_state import SamplerState
from saccade.kernels import gpu

from .graph_emulator import Tape

WIDTH = 257


def some_params(rng: random.Random) -> dict[str, Any]:
    """Any mixture of what changes a row's distribution."""
    fields: dict[str, Any] = {
        "seed": rng.randrange(2**40),
        "temperature": rng.choice([0, 0.3, 1, 4]),
    }
    choices: list[tuple[str, list[Any]]] = [
        ("top_k", [1, 2, 5, 40, WIDTH, 1000]),
        ("top_p", [0.05, 0.5, 0.9, 0.999]),
        ("min_p", [0.01, 0.3, 1.0]),
        ("repetition_penalty", [0.5, 1.3]),
        ("presence_penalty", [-1.5, 0.7]),
        ("frequency_penalty", [0.4]),
        ("logit_bias", [{3: 5.0, 200: -100.0}, {0: 100.0}]),
        ("min_tokens", [50]),
    ]
    for name, values in choices:
        if rng.random() < 0.4:
            fields[name] = rng.choice(values)
    return fields


def some_logits(rng: random.Random, rows: int) -> torch.Tensor:
    """Of many shapes: flat, peaked, with equal values, and with tokens that cannot come."""
    logits = torch.randn(rows, WIDTH) * torch.tensor([rng.choice([0.1, 2.0, 20.0])])
    if rng.random() < 0.5:
        logits = (logits * 2).round() / 2
    if rng.random() < 0.3:
        logits[:, rng.randrange(WIDTH) :: 3] = -torch.inf
        logits[:, 0] = 1.0
    return logits


def make(rng: random.Random) -> SamplerState:
    params = SamplingParams(max_tokens=100, stop_token_ids=[9, 11], **some_params(rng))
    prompt = [rng.randrange(WIDTH) for _ in range(rng.randrange(1, 9))]
    output = [rng.randrange(WIDTH) for _ in range(rng.randrange(12))]
    assert params.seed is not None
    return SamplerState(
        params, prompt, [1], seed=params.seed, stream=rng.randrange(3), output=output
    )


@pytest.fixture
def on_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are sampled as on a GPU."""
    monkeypatch.setenv(gpu.INTERPRETED, "1")


@pytest.mark.parametrize("number", range(8))
def test_the_tokens_of_the_host(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Mixed batches of 40 rows, in slices of 16, each row with parameters of its own."""
    rng = random.Random(number)
    torch.manual_seed(number)
    logits, rows = some_logits(rng, 40), [make(rng) for _ in range(40)]
    expected = Sampler().sample(logits, rows)
    monkeypatch.setenv(gpu.INTERPRETED, "1")
    asked: list[int] = []
    draw = device_sampler.draw
    monkeypatch.setattr(
        "saccade.engine.sampler.draw", lambda *args: (asked.append(len(args[1])), draw(*args))[1]
    )
    kept = logits.clone()
    found = Sampler().sample(logits, rows)
    assert [each.token for each in found] == [each.token for each in expected]
    assert len(asked) == 1 and asked[0] > 20
    assert torch.equal(logits, kept)


def test_a_row_alone_and_in_company(on_device: None) -> None:
    """The same token, whoever else is in the batch."""
    rng = random.Random(5)
    logits, rows = some_logits(rng, 24), [make(rng) for _ in range(24)]
    together = [each.token for each in Sampler().sample(logits, rows)]
    order = list(range(24))
    rng.shuffle(order)
    shuffled = Sampler().sample(logits[order], [rows[i] for i in order])
    assert [each.token for each in shuffled] == [together[i] for i in order]
    for i in (0, 7, 23):
        (alone,) = Sampler().sample(logits[i : i + 1], [rows[i]])
        assert alone.token == together[i]


def test_many_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two thousand numbers over one distribution, as the host draws them."""
    params = SamplingParams(temperature=0.8, top_p=0.95, seed=3)
    rows = [SamplerState(params, [4], [1], seed=3, output=[2] * n) for n in range(0, 2000, 5)]
    logits = torch.randn(1, WIDTH).expand(len(rows), WIDTH).contiguous()
    expected = [each.token for each in Sampler().sample(logits, rows)]
    monkeypatch.setenv(gpu.INTERPRETED, "1")
    assert [each.token for each in Sampler().sample(logits, rows)] == expected
    assert len(set(expected)) > 30


def test_faults_stay_in_their_row(on_device: None) -> None:
    """Logits of NaN, and a row all of whose tokens are masked out."""
    rows = [
        SamplerState(SamplingParams(temperature=1.0, **fields), [5], [1], seed=1)
        for fields in ({}, {"min_tokens": 3, "stop_token_ids": [0, 2]}, {"top_k": 3})
    ]
    logits = torch.zeros(3, 3)
    logits[0, 1] = torch.nan
    found = Sampler().sample(logits, rows)
    assert "not finite" in str(found[0].error) and "masked out" in str(found[1].error)
    assert found[2].error is None and 0 <= found[2].token < 3


def test_nothing_waits_for_the_device() -> None:
    """Until the tokens are read."""
    rng = random.Random(1)
    logits, rows = some_logits(rng, 20), [make(rng) for _ in range(20)]
    with Tape():
        device_sampler.draw(logits, rows)


def test_log_probabilities_and_structures_stay_on_the_host(on_device: None) -> None:
    params = SamplingParams(temperature=1.0, logprobs=2, seed=1)
    row = SamplerState(params, [5], [1], seed=1)
    assert not row.fits_device
    (found,) = Sampler().sample(torch.randn(1, WIDTH), [row])
    assert found.logprobs is not None and found.token in found.logprobs


def test_scratch() -> None:
    assert device_sampler.scratch_bytes(1000, 64) == 1000 * (16 * device_sampler.BYTES + 64 * 4)
