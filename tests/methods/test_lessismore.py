"""LessIsMore and TidalDecode through the whole engine: limits, an independent oracle, refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from saccade import Engine
from saccade.engine.attention.base import Aux, LayerCache, LayerShape, Step
from saccade.engine.attention.lessismore import LessIsMore
from saccade.engine.attention.parse import parse_method
from saccade.kernels import native
from saccade.kernels.select_keys import KeyRule

from ..engine.conftest import Checkpoints
from ..engine.engine_probe import Recorder, bitwise, greedy, some_tokens
from ..kernels.paged import make
from .decode_oracle import decode_logits

pytestmark = pytest.mark.usefixtures("one_thread")
compiled = pytest.mark.skipif(
    native.chosen_isa() is None, reason="the references promise tokens, not bits"
)
PROMPT = some_tokens(100)
SPECS = {
    "rank": "lessismore(64, 16, 0, 9, 4, 0.5)",
    "mean": "lessismore(64, 16, 0, 1, 4, 0.5, mean_prob)",
    "tidal": "tidal(48, 16, 0, 1)",
}


def generated(folder: Path, spec: str, **options: str) -> tuple[torch.Tensor, list[int]]:
    """Logits of all rows of the prompt and of nine generated tokens, and all these tokens."""
    with Engine(folder, page_size=16, decode_attention=spec, **options) as engine:
        recorder = Recorder(engine)
        output = engine.generate(PROMPT, greedy(10))[0]
        tokens = [*PROMPT, *output.outputs[0].token_ids[:-1]]
        return recorder.matrix(f"{output.request_id}-0"), tokens


@compiled
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "spec",
    ["lessismore(112, 16, 0)", "lessismore(128, 16, 1, union=mean_prob)", "tidal(112, 16, 0)"],
)
def test_a_budget_of_the_whole_context_is_dense(
    checkpoint: Checkpoints, spec: str, dtype: str
) -> None:
    folder = checkpoint("llama")
    found, _ = generated(folder, spec, dtype=dtype)
    assert bitwise(found, generated(folder, "dense", dtype=dtype)[0])


@compiled
def test_layers_that_select_are_dense(checkpoint: Checkpoints) -> None:
    """Three layers: with the last one or none after `start`, nothing is left to read less."""
    folder = checkpoint("llama")
    dense, _ = generated(folder, "dense")
    assert bitwise(generated(folder, "lessismore(48, start=2)")[0], dense)
    assert bitwise(generated(folder, "tidal(48, start=1, correction=2)")[0], dense)
    assert not bitwise(generated(folder, "tidal(48, start=1)")[0], dense)


def row_list(scores: torch.Tensor, kind: str) -> list[list[int]]:
    """Lists of blocks of 16 by the papers' rules, from scores [H, L] of one row over its keys."""
    heads, length = scores.shape
    own = (length - 1) // 16
    if kind == "mean":
        scores = scores.softmax(-1).sum(0, keepdim=True)
    best = [[float(each[j * 16 : j * 16 + 16].max()) for j in range(own + 1)] for each in scores]
    if kind == "tidal":
        ranks = [sorted(range(own + 1), key=lambda j: (-each[j], -j))[:3] for each in best]
        return ranks
    middle = range(1, own)  # one block of sinks and one of the latest; two of four are free
    ranks = [sorted(middle, key=lambda j: (-each[j], -j)) for each in best]
    order = dict.fromkeys(each[n] for n in range(len(middle)) for each in ranks)
    return [[0, *list(order)[:2], own]] * heads


def oracle_mask(kind: str) -> Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor]:
    """What every layer of a step reads: a rule that remembers what the layer before chose."""
    chosen: dict[int, list[list[int]]] = {}  # by the row's length

    def mask(layer: int, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        heads, length = q.shape[0], k.shape[0]
        if layer == 0 or (layer == 1 and kind != "rank"):
            scores = torch.einsum("hd,lhd->hl", q, k) * q.shape[1] ** -0.5
            chosen[length] = row_list(scores, kind)
            return torch.ones((heads, length), dtype=torch.bool)
        seen = torch.zeros((heads, length), dtype=torch.bool)
        for head, blocks in enumerate(chosen[length]):
            for block in blocks:
                seen[head, block * 16 : block * 16 + 16] = True
        return seen

    return mask


@pytest.mark.parametrize("kind", SPECS)
def test_against_an_independent_model(checkpoint: Checkpoints, kind: str) -> None:
    folder = checkpoint("llama")
    found, tokens = generated(folder, SPECS[kind])
    truth = decode_logits(folder, tokens, len(PROMPT), oracle_mask(kind))
    assert float((found - truth).abs().max() / truth.abs().max()) < 1e-4
    dense = decode_logits(
        folder, tokens, len(PROMPT), lambda layer, q, k: torch.ones(len(q), len(k)).bool()
    )
    assert float((found - dense).abs().max() / truth.abs().max()) > 1e-3


def test_the_reserved_share_follows_the_paper() -> None:
    """Of K tokens int(K * 0.75) are chosen; sinks come out of the rest, if they fit in it."""
    assert LessIsMore(2048, 16).rule == KeyRule(128, 1, 31)
    assert LessIsMore(1024, 32, sinks=40).rule == KeyRule(32, 2, 6)
    assert LessIsMore(64, 16, sinks=17, recent=0.25).rule == KeyRule(4, 0, 1)
    assert LessIsMore(64, 16, recent=0.0).rule == KeyRule(4, 0, 1)  # a row reads itself


@pytest.mark.parametrize(
    ("spec", "owners"), [("lessismore(64, 16, 1)", 1), ("tidal(64, 16, 1)", 4)]
)
def test_keys_read_follow_the_layer(spec: str, owners: int) -> None:
    problem = make([300], [3])
    shape, method = LayerShape(4, 2, 32, 32, 32**-0.5), parse_method(spec)
    keys = problem.keys
    step = Step(
        keys.cu_rows, keys.positions, keys.positions, keys.page_table,
        torch.tensor([290]), slice(0, 3), 64,
    )  # fmt: skip
    plan, read = method.plan(shape, step), []
    for layer in range(4):
        cache = LayerCache(layer, problem.layout, problem.k, problem.v)
        method.attend(shape, cache, step, plan, problem.q, Aux())
        read.append(method.keys_read(shape, step, plan).tolist())
    assert read[0] == read[1] == [298 + 299 + 300]
    ids = plan.carried.ids
    assert ids.shape[1] == owners and read[2] == read[3]
    counts = [
        sum(min(16, 298 + row - 16 * j) for j in each if j >= 0)
        for row, lists in enumerate(ids.tolist())
        for each in lists
    ]
    assert read[2] == [sum(counts) / owners]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("lessismore(2048, 8)", r"lessismore: block must be a power of two in 16 \.\. 512, got 8"),
        ("tidal(32)", r"tidal: budget must be 3 \.\. 256 whole blocks of 16 tokens, got 32"),
        ("lessismore(100)", "whole blocks of 16 tokens, got 100"),
        ("lessismore(recent=1.0)", r"recent must be in \[0, 1\)"),
        ("lessismore(union=per_head)", "one of rank_major, mean_prob, got 0.25 and 'per_head'"),
    ],
)
def test_unusable_settings_are_refused(checkpoint: Checkpoints, spec: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Engine(checkpoint("llama"), decode_attention=spec)


def test_windowed_layers_are_refused(checkpoint: Checkpoints) -> None:
    with pytest.raises(ValueError, match="tidal: a layer has a sliding window of its own"):
        Engine(checkpoint("mistral"), decode_attention="tidal")
