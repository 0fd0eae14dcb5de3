"""ZeroTuning through the whole engine: an independent oracle, limits, the file of gammas, keys of
the prefix cache, causality, refusals.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from saccade import Engine
from saccade.engine.attention.parse import parse_method
from saccade.engine.errors import CheckpointError, RequestError
from saccade.kernels import native

from ..engine.conftest import Checkpoints, Engines
from ..engine.engine_probe import Recorder, bitwise, greedy, some_tokens

pytestmark = pytest.mark.usefixtures("one_thread")
compiled = pytest.mark.skipif(
    native.chosen_isa() is None, reason="the references promise tokens, not bits"
)
PROMPT = some_tokens(90)
GAMMAS = [[1.5, 0.4, 1.0, 2.5], [0.2, 1.0, 3.0, 1.1], [1.0, 1.0, 1.0, 0.7]]  # of "llama"
Tokens = list[int]


def logits(
    folder: Path, spec: str, prompt: Tokens = PROMPT, **options: Any
) -> tuple[torch.Tensor, Tokens]:
    """Logits of all rows of the prompt and of nine generated tokens; all tokens."""
    options = {"page_size": 16, "kv_cache_memory": 1 << 21, **options}
    with Engine(folder, attention=spec, **options) as engine:
        recorder = Recorder(engine)
        output = engine.generate(prompt, greedy(10))[0]
        assert engine.reads.prefill.dense_fallbacks == engine.reads.decode.dense_fallbacks == 0
        tokens = [*prompt, *output.outputs[0].token_ids]
        return recorder.matrix(f"{output.request_id}-0"), tokens


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def figures(folder: Path, gammas: Any = GAMMAS) -> str:
    path = folder / "figures.json"
    path.write_text(json.dumps({"gammas": gammas}))
    return str(path)


def oracle(folder: Path, tokens: Tokens, base: str, gammas: list[list[float]]) -> torch.Tensor:
    """float32 [T, V] of transformers' own model, log gamma added to the first key's logits.

    base: dense; window, of 20 with 3 sinks; moba, of 2 blocks of 16.
    """

    def seen(q: torch.Tensor, k: torch.Tensor, row: int) -> torch.Tensor:
        """bool [row + 1] for q [d] and keys [L, d]."""
        at = torch.arange(row + 1)
        if base == "window":
            return (at < 3) | (row - at < 20)
        if base == "moba":
            own = row // 16
            means = [k[16 * block : 16 * block + 16].mean(0) for block in range(own)]
            best = max(range(own), key=lambda block: float(means[block] @ q), default=own)
            return (at // 16 == own) | (at // 16 == best)
        return at >= 0

    def attention(module: Any, q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> Any:
        group, length = q.shape[1] // k.shape[1], q.shape[2]
        k, v = (x.repeat_interleave(group, 1)[0].double() for x in (k, v))
        queries, out = q[0].double() * module.scaling, torch.empty_like(q)
        for head in range(q.shape[1]):
            gain = torch.tensor(gammas[module.layer_idx][head], dtype=torch.float64)
            for row in range(length):
                scores = k[head, : row + 1] @ queries[head, row]
                scores[0] += gain.log()
                scores[~seen(queries[head, row], k[head], row)] = -torch.inf
                out[0, head, row] = (scores.softmax(0) @ v[head, : row + 1]).float()
        return out.transpose(1, 2), None

    transformers.AttentionInterface.register("zerotuning_oracle", attention)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="zerotuning_oracle"
    )
    with torch.inference_mode():
        found: torch.Tensor = model(torch.tensor([tokens]), use_cache=False).logits[0]
    return found


BASES = {
    "dense": "base=dense",
    "window": "base=window, size=20, sinks=3",
    "moba": "base=moba, block=16, topk=2",
}


@pytest.mark.parametrize("base", BASES)
def test_gammas_of_a_file_against_an_independent_model(
    checkpoint: Checkpoints, tmp_path: Path, base: str
) -> None:
    folder = checkpoint("llama")
    spec = f"zerotuning({BASES[base]})"
    found, tokens = logits(folder, spec, calibration=figures(tmp_path))
    assert relative_error(found, oracle(folder, tokens[:-1], base, GAMMAS)) < 1e-4
    plain = {"dense": "dense", "window": "window(20, 3)", "moba": "moba(16, 2)"}[base]
    assert relative_error(found[:90], logits(folder, plain)[0][:90]) > 1e-3


def test_options_against_an_independent_model(checkpoint: Checkpoints) -> None:
    """One gamma for some heads, by layers."""
    folder = checkpoint("llama")
    found, tokens = logits(folder, "1:zerotuning(3.5, 0_2); *:zerotuning(0.25)")
    gammas = [[0.25] * 4, [3.5, 1.0, 3.5, 1.0], [0.25] * 4]
    assert relative_error(found, oracle(folder, tokens[:-1], "dense", gammas)) < 1e-4


@compiled
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("options", "plain"),
    [("", "dense"), (", base=window, size=20, sinks=3", "window(20, 3)"),
     (", base=moba, block=16, topk=2", "moba(16, 2)")],
)  # fmt: skip
def test_a_gamma_of_one_is_the_base(
    checkpoint: Checkpoints, options: str, plain: str, dtype: str
) -> None:
    folder = checkpoint("llama")
    found = logits(folder, f"zerotuning(1.0{options})", dtype=dtype)[0]
    assert bitwise(found, logits(folder, plain, dtype=dtype)[0])


def test_all_blocks_are_dense(checkpoint: Checkpoints) -> None:
    folder = checkpoint("llama")
    found = logits(folder, "zerotuning(2.0, base=moba, block=16, topk=7)")[0]
    assert relative_error(found, logits(folder, "zerotuning(2.0)")[0]) < 1e-5


def test_in_bfloat16_within_budget(checkpoint: Checkpoints) -> None:
    """At most twice the error of dense attention in the same precision."""
    folder = checkpoint("llama")
    errors = []
    for spec in ("dense", "zerotuning(2.0)"):
        exact, tokens = logits(folder, spec)
        rounded = logits(folder, spec, tokens[:90], dtype="bfloat16")[0][:90]
        errors.append((rounded - exact[:90]).square().mean())
    assert errors[1] <= 4 * errors[0]


@compiled
@pytest.mark.parametrize("at", [0, 1, 40, 89])
@pytest.mark.parametrize("base", BASES)
def test_what_comes_later_changes_nothing_before(
    checkpoint: Checkpoints, base: str, at: int
) -> None:
    edited = [*PROMPT[:at], 3 + PROMPT[at] % 100, *PROMPT[at + 1 :]]
    spec = f"zerotuning(1.7, {BASES[base]})"
    one, other = (logits(checkpoint("llama"), spec, prompt)[0] for prompt in (PROMPT, edited))
    assert bitwise(one[:at], other[:at]) and not torch.equal(one[at], other[at])


def test_one_token(checkpoint: Checkpoints) -> None:
    """The only key weighs all there is, whatever its gain."""
    folder = checkpoint("llama")
    one, other = (logits(folder, spec, [5])[0][0] for spec in ("dense", "zerotuning(7.0)"))
    assert relative_error(one, other) < 1e-5


# ---- where gammas come from, and what pages depend on ----


def test_gammas_are_part_of_the_prefix_cache_key(
    checkpoint: Checkpoints, make_engine: Engines, tmp_path: Path
) -> None:
    folder = checkpoint("llama")
    keys = set()
    for i, gain in enumerate((1.5, 1.5, 1.25)):
        path = tmp_path / str(i)
        path.mkdir()
        named = figures(path, [[gain] * 4] * 3)
        engine = make_engine(folder, attention="zerotuning", calibration=named)
        keys.add(engine._policies.own.key(90))
    assert len(keys) == 2
    engine = make_engine(folder, calibration=figures(tmp_path))
    hits = [
        engine.generate(PROMPT, greedy(1), attention=spec)[0].num_cached_tokens
        for spec in ("dense", "zerotuning", "zerotuning(1.5)", "zerotuning(1.5, 0_1)", "zerotuning")
    ]
    assert hits == [0, 0, 0, 0, 80]


def test_the_folders_own_file_is_found(checkpoint: Checkpoints, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(checkpoint("llama"), folder)
    named = logits(folder, "zerotuning", calibration=figures(tmp_path))[0]
    (folder / "calibration.json").write_text(json.dumps({"gammas": GAMMAS}))
    assert bitwise(logits(folder, "zerotuning")[0], named)
    assert bitwise(logits(folder, "dense")[0], logits(checkpoint("llama"), "dense")[0])


@pytest.mark.parametrize(
    ("gammas", "words"),
    [
        (GAMMAS[:2], "gammas: expected 3 lists, one per layer"),
        ([row[:3] for row in GAMMAS], "gammas: expected 4 numbers per layer, one per head"),
        ([[1.0, 1.0, 1.0, 0.0]] * 3, "gammas: expected 0.01 to 100, found 0.0"),
        ([[1.0, 1.0, 1.0, True]] * 3, "found True"),
        ("all", "expected 3 lists"),
    ],
)
def test_a_file_that_does_not_fit(
    checkpoint: Checkpoints, tmp_path: Path, gammas: Any, words: str
) -> None:
    with pytest.raises(CheckpointError, match=words):
        Engine(checkpoint("llama"), calibration=figures(tmp_path, gammas))


# ---- refusals ----


@pytest.mark.parametrize("base", ["quest", "delta", "streaming", "nsa", "nonsense"])
def test_other_bases_are_refused_with_the_reason(base: str) -> None:
    with pytest.raises(ValueError, match=f"dense, window, moba, not '{base}': the other methods"):
        parse_method(f"zerotuning(1.5, base={base})")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("zerotuning(0.001)", "gamma must be 0 or in 0.01 .. 100, got 0.001"),
        ("zerotuning(1.5, heads=0_x)", "heads must be all, or numbers as in 0_3_5, not '0_x'"),
        ("zerotuning(1.5, base=window, sinks=0)", "drops the first token if sinks is 0"),
        ("zerotuning(1.5, base=moba, block=24)", "power of two"),
        ("zerotuning(1.5, heads=1_4)", "heads=1_4 must be below the layer's 4 heads"),
        ("zerotuning", "no gamma is given, and this checkpoint has none"),
    ],
)
def test_unusable_settings_are_refused(checkpoint: Checkpoints, spec: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Engine(checkpoint("llama"), attention=spec)


def test_what_does_not_suit_a_model_or_a_request(
    checkpoint: Checkpoints, make_engine: Engines
) -> None:
    with pytest.raises(ValueError, match="sliding window of its own"):
        Engine(checkpoint("mistral"), attention="zerotuning(1.5)")
    with pytest.raises(RequestError, match="this checkpoint has none"):
        make_engine(checkpoint("llama")).generate(PROMPT, greedy(1), attention="zerotuning")
