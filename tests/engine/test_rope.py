"""Rotary frequencies and tables against transformers' own, for every type and its options."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from saccade.engine.checkpoint.json_object import Fields
from saccade.engine.checkpoint.rope_config import RopeConfig, read_rope
from saccade.engine.layers.rope import RotaryEmbedding, inverse_frequencies

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_theta": 500000.0,
}
CASES: list[dict[str, Any]] = [
    {"rope_type": "default"},
    {"rope_type": "default", "rope_theta": 1000000.0},
    {"rope_type": "linear", "factor": 2.5},
    {"rope_type": "dynamic", "factor": 2.0},
    LLAMA3,
    {**LLAMA3, "factor": 32.0, "high_freq_factor": 2.0},
    YARN,
    {**YARN, "attention_factor": 0.75},
    {**YARN, "mscale": 0.707, "mscale_all_dim": 1.3},
    {**YARN, "mscale": 1.0, "mscale_all_dim": 0.0},
    {**YARN, "beta_fast": 16, "beta_slow": 2, "truncate": False},
    {**YARN, "factor": 1.0},
    {"rope_type": "yarn", "factor": 3.0},
]


def read(parameters: dict[str, Any], max_position: int = 2048, **keys: Any) -> RopeConfig:
    return read_rope(Fields({"rope_parameters": parameters, **keys}, "config.json"), max_position)


@pytest.mark.parametrize("head_dim", [16, 64, 128])
@pytest.mark.parametrize("parameters", CASES, ids=str)
def test_frequencies_and_angles(parameters: dict[str, Any], head_dim: int) -> None:
    config = LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        max_position_embeddings=2048,
        rope_parameters={"rope_theta": 10000.0, **parameters},
    )
    oracle = LlamaRotaryEmbedding(config)
    positions = torch.tensor([0, 1, 5, 63, 500, 1023, 1024, 2047])
    cos, sin = oracle(torch.zeros(1), positions[None])
    ours = RotaryEmbedding(read(parameters), head_dim, 2048)
    torch.testing.assert_close(ours.inv_freq, oracle.inv_freq, rtol=3e-7, atol=0)
    our_cos, our_sin = ours.cos_sin(positions)
    # An angle of 2047 radians in float32 is known to 1e-4, so one rounding may show that much.
    torch.testing.assert_close(our_cos, cos[0, :, : head_dim // 2], rtol=0, atol=3e-4)
    torch.testing.assert_close(our_sin, sin[0, :, : head_dim // 2], rtol=0, atol=3e-4)


def test_yarn_without_a_factor_takes_the_ratio_of_its_lengths() -> None:
    parameters = {"rope_type": "yarn", "original_max_position_embeddings": 512}
    assert read(parameters) == read({**parameters, "factor": 4.0})


def test_the_trained_length_may_stand_outside_the_rotary_settings() -> None:
    inside = read(YARN)
    outside = {key: value for key, value in YARN.items() if not key.startswith("original")}
    assert read(outside, original_max_position_embeddings=512) == inside


def test_dynamic_is_fixed_for_the_longest_sequence() -> None:
    rope = read({"rope_type": "dynamic", "factor": 4.0}, max_position=64)
    plain = inverse_frequencies(RopeConfig("default", 10000.0, 64), 32, 64)
    assert torch.equal(inverse_frequencies(rope, 32, 16), plain)
    assert torch.equal(inverse_frequencies(rope, 32, 64), plain)
    config = LlamaConfig(
        hidden_size=64,
        num_attention_heads=2,
        max_position_embeddings=64,
        rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0},
    )
    for length in (65, 100, 1000):
        oracle = LlamaRotaryEmbedding(config)
        oracle(torch.zeros(1), torch.arange(length)[None])
        ours = inverse_frequencies(rope, 32, length)
        torch.testing.assert_close(ours, oracle.inv_freq, rtol=2e-6, atol=0)


def test_longrope_is_fixed_for_the_longest_sequence() -> None:
    parameters = {
        "rope_type": "longrope",
        "original_max_position_embeddings": 64,
        "short_factor": [1.0 + i / 8 for i in range(16)],
        "long_factor": [1.0 + i for i in range(16)],
    }
    rope = read(parameters, max_position=256)
    config = LlamaConfig(
        hidden_size=64,
        num_attention_heads=2,
        max_position_embeddings=256,
        rope_parameters={"rope_theta": 10000.0, **parameters},
    )
    for length in (64, 65, 256):
        oracle = LlamaRotaryEmbedding(config)
        oracle(torch.zeros(1), torch.arange(length)[None])
        ours = inverse_frequencies(rope, 32, length)
        torch.testing.assert_close(ours, oracle.inv_freq, rtol=3e-7, atol=0)
        assert rope.attention_scaling == pytest.approx(oracle.attention_scaling)


def test_rows_of_the_table_do_not_depend_on_its_length_or_on_the_order() -> None:
    rope = read({"rope_type": "default"})
    short, long = RotaryEmbedding(rope, 64, 1500), RotaryEmbedding(rope, 64, 2048)
    positions = torch.tensor([1499, 3, 3, 1024, 0])
    for ours, others in zip(short.cos_sin(positions), long.cos_sin(positions), strict=True):
        assert torch.equal(ours, others)
        assert torch.equal(ours[1], ours[2])
    assert short.nbytes == 1500 * 64 * 4
    late, there = short.cos_sin(torch.tensor([1500])), long.cos_sin(torch.tensor([1500]))
    torch.testing.assert_close(late, there, rtol=0, atol=1e-4)  # beyond its table, unrounded
