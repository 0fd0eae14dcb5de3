"""Log-probabilities: raw distribution, ranks, prompt alignment under any cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade.engine.errors import SaccadeError
from saccade.engine.logprobs import PromptLogprobs, token_logprobs, with_text
from saccade.engine.params import SamplingParams
from saccade.engine.sampler import Sampler
from saccade.engine.sampler_state import SamplerState


def test_logprobs_are_of_the_raw_distribution() -> None:
    logits = torch.randn(1, 100, generator=torch.Generator().manual_seed(2)) * 3
    params = SamplingParams(
        temperature=0.3, logit_bias={50: 100.0}, repetition_penalty=2.0, logprobs=4
    )
    row = SamplerState(params, [1, 2], [], seed=0)
    (sampled,) = Sampler().sample(logits, [row])
    raw = torch.log_softmax(logits[0].double(), -1)
    assert sampled.token == 50 and sampled.logprobs is not None
    assert list(sampled.logprobs)[:4] == raw.topk(4).indices.tolist()
    for token, entry in sampled.logprobs.items():
        assert entry.logprob == pytest.approx(raw[token].item(), abs=1e-9)
        assert entry.rank == 1 + int((raw > raw[token]).sum())
    assert 50 in sampled.logprobs and len(sampled.logprobs) in (4, 5)


def test_ranks_of_equal_logits_follow_token_ids() -> None:
    row = torch.tensor([1.0, 2.0, 1.0, 1.0]).numpy()
    assert {t: e.rank for t, e in token_logprobs(row, 3, 3).items()} == {1: 1, 0: 2, 2: 3, 3: 4}
    assert list(token_logprobs(row, 2, 0)) == [2] and token_logprobs(row, 2, 0)[2].rank == 3
    assert len(token_logprobs(row, 2, 20)) == 4


def test_text_is_filled_in_afterwards() -> None:
    entry = with_text(token_logprobs(torch.zeros(3).numpy(), 2, 1), lambda token: f"<{token}>")
    assert [value.decoded_token for value in entry.values()] == ["<0>", "<2>"]


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 12), max_size=5), again=st.integers(0, 12))
def test_prompt_logprobs_do_not_depend_on_the_cut(cuts: list[int], again: int) -> None:
    prompt = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]
    logits = torch.randn(12, 10, generator=torch.Generator().manual_seed(4))
    whole, cut = PromptLogprobs(prompt, 2), PromptLogprobs(prompt, 2)
    whole.add(0, logits)
    edges = [0, *sorted(cuts), 12]
    for low, high in pairwise(edges):
        cut.add(low, logits[low:high])
    cut.add(again, logits[again:])  # computed again after preemption
    assert whole.result() == cut.result()
    first, *rest = whole.result()
    assert first is None
    raw = torch.log_softmax(logits.double(), -1)
    for position, entry in enumerate(rest, start=1):
        token = prompt[position]
        expected = raw[position - 1, token].item()
        assert entry is not None and entry[token].logprob == pytest.approx(expected, abs=1e-9)


def test_prompt_logprobs_of_one_token_and_of_gaps() -> None:
    assert PromptLogprobs([7], 1).result() == [None]
    gap = PromptLogprobs([1, 2, 3], 1)
    gap.add(1, torch.zeros(1, 5))
    with pytest.raises(SaccadeError, match="prompt token 1"):
        gap.result()
    with pytest.raises(SaccadeError, match="not finite"):
        gap.add(0, torch.full((1, 5), torch.nan))
