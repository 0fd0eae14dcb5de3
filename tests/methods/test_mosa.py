"""MoSA against an independent model, its limits, who may see what, and the memory it takes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from saccade import Engine, SamplingParams
from saccade.engine.attention.parse import parse_method
from saccade.engine.errors import RequestError

from ..engine.conftest import Checkpoints, Engines
from ..engine.engine_probe import Recorder, bitwise, greedy, some_tokens
from ..engine.tiny_mosa import write_tiny_mosa
from .mosa_model import MosaModel

pytestmark = pytest.mark.usefixtures("one_thread")
FAMILIES = ("mosa", "mosa_pure")
MODES: dict[str, dict[str, Any]] = {
    "mosa": {"mode": "threshold"},
    "mosa(capacity=1.0, burst=0, tau=0.5)": {
        "mode": "threshold",
        "capacity": 1.0,
        "burst": 0,
        "tau": 0.5,
    },
    "mosa(mode=stream)": {"mode": "stream"},
    "mosa(mode=stream, k=7)": {"mode": "stream", "k": 7},
    "mosa(mode=whole)": {"mode": "whole"},
    "mosa(mode=whole, k=11)": {"mode": "whole", "k": 11},
}
CAUSAL = [spec for spec in MODES if "whole" not in spec]


def logits_of(engine: Engine, tokens: list[int], new: int = 1) -> tuple[torch.Tensor, list[int]]:
    """Logits [T, V] of every row of a prompt and what follows it, and the tokens of these rows."""
    recorder = Recorder(engine)
    output = engine.generate(tokens, greedy(new))[0]
    assert output.error is None
    rows = recorder.matrix(f"{output.request_id}-0")
    return rows, [*tokens, *output.outputs[0].token_ids][: len(rows)]


def assert_near(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Rounding of a tiny model in fp32."""
    assert (found.double() - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("spec", MODES)
def test_prompt_and_output_are_those_of_the_independent_model(
    checkpoint: Checkpoints, make_engine: Engines, family: str, spec: str
) -> None:
    folder = checkpoint(family)
    engine = make_engine(folder, attention=spec)
    new = 1 if "whole" in spec else 30
    found, tokens = logits_of(engine, some_tokens(100), new)
    assert_near(found, MosaModel(folder, **MODES[spec]).logits(tokens))
    assert tokens[100:] == found[99:-1].argmax(1).tolist()  # greedy tokens, so those of the oracle


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("spec", MODES)
@pytest.mark.parametrize("length", [1, 2, 3, 7, 15, 16, 17, 33])
def test_short_texts(
    checkpoint: Checkpoints, make_engine: Engines, family: str, spec: str, length: int
) -> None:
    """One token, fewer than two shares, and the borders of pages."""
    folder = checkpoint(family)
    found, tokens = logits_of(make_engine(folder, attention=spec), some_tokens(length))
    model = MosaModel(folder, **MODES[spec])
    assert_near(found, model.logits(tokens))
    if MODES[spec]["mode"] != "threshold" and "k" not in MODES[spec]:
        least = min(length, max(length // model.mosa["sparsity"], 2))
        assert all(len(kept) == least for heads in model.kept for kept in heads)


# ---- limits ----


def as_dense(folder: Path, target: Path, share: float) -> Path:
    """The checkpoint with each choosing head made a dense one that is multiplied by `share`; one
    choosing head is left, and gives nothing.
    """
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    heads = config["mosa"]["num_mosa_heads"]
    config["mosa"] |= {"num_mosa_heads": 1, "num_other_heads": heads}
    (target / "config.json").write_text(json.dumps(config))
    (target / "calibration.json").unlink()
    weights = load_file(target / "model.safetensors")
    for name in [each for each in weights if each.endswith("mosa_heads.QKV.W")]:
        base = name.removesuffix("mosa_heads.QKV.W")
        qkv, out = weights[name], weights[base + "mosa_heads.O.W"]
        weights[base + "other_heads.W_QKV.weight"] = qkv.transpose(1, 2).flatten(0, 1).contiguous()
        weights[base + "other_heads.W_O.weight"] = (share * out).flatten(0, 1).T.contiguous()
        weights[name] = qkv[:1].clone()
        weights[base + "mosa_heads.O.W"] = torch.zeros_like(out[:1])
        weights[base + "mosa_heads.r.0.weight"] = weights[base + "mosa_heads.r.0.weight"][
            :1
        ].clone()
    save_file(weights, target / "model.safetensors")
    return target


@pytest.mark.parametrize("spec", ["mosa(tau=0.1)", "mosa(mode=stream)", "mosa(mode=whole)"])
def test_keeping_every_token_with_a_router_of_zeros_is_half_of_dense(
    make_engine: Engines, tmp_path: Path, spec: str
) -> None:
    folder = write_tiny_mosa(tmp_path / "all", "mosa_pure", sparsity=1)
    weights = load_file(folder / "model.safetensors")
    for name, each in weights.items():
        if "r.0" in name:
            each.zero_()
    save_file(weights, folder / "model.safetensors")
    dense = as_dense(folder, tmp_path / "dense", 0.5)
    prompt = some_tokens(50)
    found, _ = logits_of(make_engine(folder, attention=spec), prompt)
    expected, _ = logits_of(make_engine(dense, attention="mosa(tau=0.1)"), prompt)
    assert_near(found, expected.double())


def test_keeping_every_token_all_modes_agree(make_engine: Engines, tmp_path: Path) -> None:
    folder = write_tiny_mosa(tmp_path / "all", "mosa", sparsity=1)
    prompt = some_tokens(50)
    rows = [
        logits_of(make_engine(folder, attention=spec), prompt)[0]
        for spec in ("mosa(mode=whole)", "mosa(mode=stream)", "mosa(tau=0.0000001)")
    ]
    assert bitwise(rows[0], rows[1]) and bitwise(rows[0], rows[2])


# ---- what a row gets, and from where ----


class Watched:
    """Remembers what an attention layer did in the last step."""

    def __init__(self, layer: Any) -> None:
        self.layer, self.shape = layer, layer.shape

    def __call__(self, x: torch.Tensor, step: Any) -> torch.Tensor:
        choose = step.choose

        def watched(*arguments: Any) -> Any:
            self.chosen = choose(*arguments)
            return self.chosen

        step.choose = watched
        self.out = self.layer(x, step)
        step.choose = choose
        return self.out


@pytest.mark.parametrize("spec", MODES)
def test_a_row_that_no_head_chose_gets_exactly_nothing(
    checkpoint: Checkpoints, make_engine: Engines, spec: str
) -> None:
    folder = checkpoint("mosa_pure", sparsity=12)
    spec = spec.replace("tau=0.5", "tau=0.9")
    engine = make_engine(folder, attention=spec)
    layer = engine._runner._model.layers[1]
    layer.attention = watched = Watched(layer.attention)
    logits_of(engine, some_tokens(100))
    chosen = torch.zeros(100, dtype=torch.bool)
    chosen[watched.chosen.rows] = True
    assert chosen.any() and not chosen.all()
    assert (watched.out[~chosen] == 0).all()
    assert (watched.out[chosen] != 0).any(1).all()


@pytest.mark.parametrize("spec", CAUSAL)
def test_a_later_token_changes_nothing_before_it(
    checkpoint: Checkpoints, make_engine: Engines, spec: str
) -> None:
    folder, prompt = checkpoint("mosa"), some_tokens(60)
    found, _ = logits_of(make_engine(folder, attention=spec), prompt)
    for place in (30, 59):
        edited = [*prompt]
        edited[place] = prompt[place] % 100 + 2
        other, _ = logits_of(make_engine(folder, attention=spec), edited)
        assert bitwise(found[:place], other[:place])
        assert not bitwise(found[place:], other[place:])


def test_whole_is_not_causal(checkpoint: Checkpoints, make_engine: Engines) -> None:
    """The rule of training: the last token alone changes what earlier rows give."""
    engine = make_engine(checkpoint("mosa"), attention="mosa(mode=whole)")
    changed = 0
    for seed in range(20):
        prompt = some_tokens(41, seed)
        found, _ = logits_of(engine, prompt)
        other, _ = logits_of(engine, [*prompt[:-1], prompt[-1] % 100 + 2])
        changed += not bitwise(found[:-1], other[:-1])
    assert changed >= 3


# ---- whole texts ----


def test_whole_scores_a_text_and_refuses_to_continue_it(
    checkpoint: Checkpoints, make_engine: Engines
) -> None:
    folder, prompt = checkpoint("mosa"), some_tokens(90)
    engine = make_engine(folder, attention="mosa(mode=whole)", max_num_batched_tokens=100)
    params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
    outputs = engine.generate([prompt, prompt[:40], prompt], params)
    for output, length in zip(outputs, (90, 40, 90), strict=True):
        rows = MosaModel(folder, "whole").logits(prompt[:length]).log_softmax(1)
        found = [
            entry[token].logprob
            for entry, token in zip(output.prompt_logprobs[1:], prompt[1:length], strict=True)
        ]
        expected = rows[:-1].gather(1, torch.tensor(prompt[1:length])[:, None])[:, 0]
        assert (torch.tensor(found) - expected).abs().max() < 1e-3
    assert all(output.num_cached_tokens == 0 for output in outputs)
    with pytest.raises(RequestError, match="cannot continue them: ask for max_tokens=1"):
        engine.generate(prompt, greedy(2))
    with pytest.raises(RequestError, match="101 tokens are more than max_num_batched_tokens=100"):
        engine.generate(some_tokens(101), params)
    with pytest.raises(ValueError, match="reads a text in one step"):
        make_engine(
            folder, attention="mosa(mode=whole)", max_num_batched_tokens=100, max_model_len=200
        )


def test_several_completions_of_a_whole_text_are_each_computed_whole(
    checkpoint: Checkpoints, make_engine: Engines
) -> None:
    engine = make_engine(checkpoint("mosa"), attention="mosa(mode=whole)")
    recorder = Recorder(engine)
    output = engine.generate(
        some_tokens(50), SamplingParams(n=3, max_tokens=1, temperature=1, seed=1)
    )[0]
    first, *others = (recorder.matrix(f"{output.request_id}-{n}") for n in range(3))
    assert len(first) == 50 and all(bitwise(first, other) for other in others)


# ---- sharing ----


def test_stream_reuses_the_state_at_the_end_of_a_step(
    checkpoint: Checkpoints, make_engine: Engines
) -> None:
    """After 64 tokens of 100, when a step ended, and not after 96."""
    engine = make_engine(
        checkpoint("mosa"), attention="mosa(mode=stream)", max_num_batched_tokens=64
    )
    prompt = some_tokens(100)
    first, again = (engine.generate(prompt, greedy(12))[0] for _ in range(2))
    assert (first.num_cached_tokens, again.num_cached_tokens) == (0, 64)
    assert again.outputs == first.outputs


def test_threshold_reuses_every_page(checkpoint: Checkpoints, make_engine: Engines) -> None:
    engine = make_engine(checkpoint("mosa"), max_num_batched_tokens=64)
    prompt = some_tokens(100)
    first = engine.generate(prompt, greedy(12))[0]
    for length, cached in ((100, 96), (80, 64), (81, 80)):
        output = engine.generate(prompt[:length], greedy(12))[0]
        assert output.num_cached_tokens == cached
        if length == 100:
            assert output.outputs == first.outputs


# ---- statistics ----


def test_what_is_read_is_counted(checkpoint: Checkpoints, make_engine: Engines) -> None:
    folder, prompt = checkpoint("mosa"), some_tokens(70)
    for spec, options in MODES.items():
        output = make_engine(folder, attention=spec).generate(prompt, greedy(1))[0]
        model = MosaModel(folder, **options)
        model.logits(prompt)
        dense, experts = model.mosa["num_other_heads"], model.mosa["num_mosa_heads"]
        read = 0.0
        for layer in model.seen:
            total = dense * sum(range(71)) + sum(len(keys) for head in layer for keys in head)
            read += total / (dense + experts)
        reads = output.stats["attention"]["prefill"]
        assert reads["keys_read"] == pytest.approx(read)
        assert reads["dense_fallbacks"] == 0 and reads["share"] < 0.7


# ---- errors ----


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mosa(mode=best)", "mode must be one of threshold, stream, whole"),
        ("mosa(capacity=0.0)", "capacity must be 0.01 to 1000"),
        ("mosa(tau=1.0)", "tau at least 0 and below 1"),
        ("mosa(k=8)", "k must be 0 or at least 2, and 0 in mode threshold"),
        ("mosa(mode=stream, k=1)", "k must be 0 or at least 2"),
        ("mosa(rate=2)", "options are: mode, capacity, burst, tau, k"),
    ],
)
def test_bad_options(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_method(spec)


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("llama", {"attention": "mosa(tau=0.5)"}, "heads of this model do not choose"),
        ("mosa", {"attention": "dense"}, "layer 0 has heads that choose tokens; only mosa"),
        ("mosa", {"decode_attention": "dense"}, "must attend by the same mosa"),
        ("mosa", {"decode_attention": "mosa(mode=stream)"}, "must attend by the same mosa"),
        ("mosa", {"attention": "0:mosa; *:mosa(burst=1)"}, "must attend by the same mosa"),
    ],
)
def test_bad_combinations(
    checkpoint: Checkpoints, family: str, options: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Engine(checkpoint(family), kv_cache_memory=1 << 20, **options)


def test_threshold_without_thresholds_says_what_to_do(checkpoint: Checkpoints) -> None:
    folder = checkpoint("mosa", calibrated=False)
    with pytest.raises(ValueError, match=r"needs a threshold per head: .*calibrate.*tau.*stream"):
        Engine(folder, kv_cache_memory=1 << 20)
