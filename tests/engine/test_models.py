"""The model against transformers: every family and rotary type, in one shot and in chunks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from saccade.engine.attention.base import Aux, LayerShape
from saccade.engine.checkpoint.loader import Checkpoint
from saccade.engine.models import LlamaModel, layer_shapes, load_model, model_nbytes

from .tiny import FAMILIES, write_tiny

ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_theta": 500.0},
    "linear": {"rope_theta": 10000.0, "factor": 4.0},
    "dynamic": {"rope_theta": 10000.0, "factor": 2.0},
    "llama3": {
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": {"rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32},
}
LENGTH = 70
CUTS = ([LENGTH], [30, *[1] * 20, 20], [7] * 10, [1, 2, 36, 31])


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices this small only lose time to a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass
class DenseForward:
    """A stand-in for the engine's step: K and V kept whole, attention in fp32 by the formula."""

    model: LlamaModel
    tokens: torch.Tensor = field(init=False)
    cos: torch.Tensor = field(init=False)
    sin: torch.Tensor = field(init=False)
    keys: dict[int, torch.Tensor] = field(default_factory=dict)
    values: dict[int, torch.Tensor] = field(default_factory=dict)

    def run(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits of a further chunk of the sequence, [T, vocab]."""
        begin = self.keys[0].shape[0] if self.keys else 0
        self.tokens = tokens
        self.cos, self.sin = self.model.rope.cos_sin(torch.arange(begin, begin + len(tokens)))
        return self.model.logits(self.model.forward(self))

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, aux: Aux
    ) -> torch.Tensor:
        if layer in self.keys:
            k = torch.cat([self.keys[layer], k])
            v = torch.cat([self.values[layer], v])
        self.keys[layer], self.values[layer] = k, v
        shape = self.model.layer_shapes[layer]
        assert shape.sinks == (aux.sink_logits is not None)
        return attention(q, k, v, shape, aux.sink_logits).to(q.dtype)


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    shape: LayerShape,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    query = torch.arange(k.shape[0] - q.shape[0], k.shape[0])[:, None]
    key = torch.arange(k.shape[0])[None, :]
    seen = key <= query
    if shape.window is not None:
        seen &= key > query - shape.window
    group = shape.num_heads // shape.num_kv_heads
    wide_k, wide_v = (x.float().repeat_interleave(group, dim=1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q.float(), wide_k) * shape.scale
    scores = scores.masked_fill(~seen, -torch.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks[:, None, None].expand(-1, len(q), 1)], dim=-1)
    weights = scores.softmax(-1)[..., : len(k)]
    return torch.einsum("hqk,khd->qhd", weights, wide_v)


def ours(model: LlamaModel, tokens: torch.Tensor, cut: list[int]) -> torch.Tensor:
    step = DenseForward(model)
    return torch.cat([step.run(chunk) for chunk in tokens.split(cut)])


def theirs(folder: Path, tokens: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager"
    )
    with torch.no_grad():
        return model(tokens[None]).logits[0].float()


def some_tokens(count: int = LENGTH, vocab_size: int = 128) -> torch.Tensor:
    return torch.randint(0, vocab_size, (count,), generator=torch.Generator().manual_seed(7))


def assert_close(actual: torch.Tensor, expected: torch.Tensor, relative: float = 1e-4) -> None:
    error = (actual - expected).abs().max() / expected.abs().max()
    assert error < relative, f"relative error {error:.2e}"


# Layers that keep a state need a whole engine: tests/engine/test_engine_families.py.
WITHOUT_STATE = [
    family
    for family, (_, own) in FAMILIES.items()
    if "linear_attention" not in own.get("layer_types", [])
]


@pytest.mark.parametrize("family", WITHOUT_STATE)
def test_logits_of_every_family_however_the_prompt_is_cut(tmp_path: Path, family: str) -> None:
    tokens = some_tokens()
    # The stand-in for a step is dense: an indexer has to choose every block.
    every = {"minimax_m3": {"index_topk_blocks": 16}, "qwen4_qsa": {"indexer_budget": 256}}
    expected = theirs(write_tiny(tmp_path, family, **every.get(family, {})), tokens)
    model = load_model(Checkpoint(tmp_path))
    for cut in CUTS:
        assert_close(ours(model, tokens, cut), expected)


@pytest.mark.parametrize("kind", ROPES)
def test_logits_of_every_rotary_type_in_either_spelling(tmp_path: Path, kind: str) -> None:
    rope = {"rope_type": kind, **ROPES[kind]}
    tokens = some_tokens()
    newer, older = tmp_path / "newer", tmp_path / "older"
    for family in ("llama", "qwen3"):
        expected = theirs(write_tiny(newer, family, rope_parameters=rope), tokens)
        assert_close(ours(load_model(Checkpoint(newer)), tokens, [50, 20]), expected)
    write_tiny(older, "llama")
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    respell(older, rope_theta=rope["rope_theta"], rope_scaling=scaling)
    assert_close(ours(load_model(Checkpoint(older)), tokens, [LENGTH]), theirs(older, tokens))


def respell(folder: Path, **keys: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    del config["rope_parameters"]
    path.write_text(json.dumps({**config, **keys}))


def test_dynamic_rope_beyond_the_trained_length(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    write_tiny(tmp_path, "llama", rope_parameters=rope, max_position_embeddings=32)
    tokens = some_tokens()
    model = load_model(Checkpoint(tmp_path), max_model_len=LENGTH)
    assert_close(ours(model, tokens, [31, 39]), theirs(tmp_path, tokens))
    short = load_model(Checkpoint(tmp_path))
    assert_close(ours(short, tokens[:32], [32]), theirs(tmp_path, tokens[:32]))


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_within_budget(tmp_path: Path, family: str, dtype: str) -> None:
    tokens, kind = some_tokens(), getattr(torch, dtype)
    write_tiny(tmp_path, family, dtype=dtype)
    exact, rounded = theirs(tmp_path, tokens), theirs(tmp_path, tokens, kind)
    model = load_model(Checkpoint(tmp_path))
    assert model.dtype == kind
    for cut in ([LENGTH], [37, 1, 32]):
        error = (ours(model, tokens, cut) - exact).square().mean().sqrt()
        assert error <= 2 * (rounded - exact).square().mean().sqrt()


def test_sharded_equals_single_and_conversion_on_load(tmp_path: Path) -> None:
    tokens = some_tokens()
    write_tiny(tmp_path / "one", "qwen2")
    write_tiny(tmp_path / "many", "qwen2", shard_size="40KB")
    assert len(list((tmp_path / "many").glob("model-*.safetensors"))) > 3
    one, many = (load_model(Checkpoint(tmp_path / name)) for name in ("one", "many"))
    assert torch.equal(ours(one, tokens, [LENGTH]), ours(many, tokens, [LENGTH]))
    half = load_model(Checkpoint(tmp_path / "one"), dtype="bfloat16")
    assert half.dtype == half.embedding.dtype == half.lm_head.dtype == torch.bfloat16


def test_layer_shapes_and_planned_memory(tmp_path: Path) -> None:
    checkpoint = Checkpoint(write_tiny(tmp_path, "qwen3_mixed"))
    model = load_model(checkpoint, max_model_len=50)
    assert model.layer_shapes == layer_shapes(checkpoint.config)
    assert [shape.window for shape in model.layer_shapes] == [5, None, 5]
    first = model.layer_shapes[0]
    assert (first.num_heads, first.num_kv_heads, first.head_dim, first.v_head_dim) == (4, 2, 16, 16)
    assert first.scale == 0.25
    assert model.rope.cos.shape == (50, 8)
    assert model_nbytes(checkpoint.config, torch.float32, 50) == loaded_nbytes(model)


def loaded_nbytes(model: LlamaModel) -> int:
    total = model.embedding.nbytes + model.lm_head.nbytes + model.norm.nbytes + model.rope.nbytes
    for layer in model.layers:
        total += layer.attention_norm.nbytes + layer.mlp_norm.nbytes
        total += layer.attention.qkv.nbytes + layer.attention.out.nbytes
        total += layer.mlp.gate_up.nbytes + layer.mlp.down.nbytes
        for norm in (layer.attention.q_norm, layer.attention.k_norm):
            total += norm.nbytes if norm is not None else 0
    return total
