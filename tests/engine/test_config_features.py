"""config.json: what only some checkpoints have (gates, sinks, layers without rotary embedding)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from saccade.engine.checkpoint.features import DeltaNet, Experts, Features, Gate
from saccade.engine.errors import CheckpointError
from saccade.engine.layers.head_rows import attention_tensors, row_order
from saccade.engine.layers.kinds import layer_part

from .test_config_json import ABSENT, LLAMA, QWEN3, read

SMOLLM3 = {**LLAMA, "architectures": ["SmolLM3ForCausalLM"], "model_type": "smollm3"}
GRANITE = {
    **LLAMA,
    "architectures": ["GraniteSWAForCausalLM"],
    "model_type": "granite_swa",
    "sliding_window": 32,
    "layer_types": ["full_attention", "sliding_attention"] * 2,
    "attention_multiplier": 0.25,
}
NEXT = {
    **LLAMA,
    "architectures": ["Qwen3NextForCausalLM"],
    "model_type": "qwen3_next",
    "layer_types": ["full_attention"] * 4,
    "num_experts": 0,
}
HYBRID = {**NEXT, "layer_types": ["linear_attention", "full_attention"] * 2}
EXPERTS = {
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 40,
}


def test_most_families_have_none_of_it(tmp_path: Path) -> None:
    assert read(tmp_path, LLAMA).features == Features()
    assert read(tmp_path, QWEN3).features == Features(qk_norm=True)
    assert row_order(read(tmp_path, QWEN3)) is None


def test_gates_of_qwen3(tmp_path: Path) -> None:
    config = read(tmp_path, QWEN3, head_dim=4, headwise_attn_output_gate=True, qkv_bias=True)
    assert config.features.gate == Gate(False, "group")
    assert config.qkv_bias and config.output_bias and config.qk_norm
    assert attention_tensors(config, 0)["q_proj.weight"] == (4 * 4 + 4, 64)
    order = row_order(config)
    assert order is not None
    # Two KV heads: 8 query rows and 2 gates of the first, then of the second, then keys and values.
    assert order.tolist() == [*range(8), *range(10, 18), *range(20, 36), 8, 9, 18, 19]
    config = read(tmp_path, QWEN3, elementwise_attn_output_gate=True, use_qk_norm=False)
    assert config.features.gate == Gate(True, "group") and not config.qk_norm
    assert not config.qkv_bias and "q_norm.weight" not in attention_tensors(config, 0)


def test_gates_of_qwen3_next(tmp_path: Path) -> None:
    config = read(tmp_path, NEXT, head_dim=8)
    assert config.features == Features(gate=Gate(True, "head"), norm_offset=1.0)
    assert config.rope_dim == 2 and not config.tied_embeddings
    order = row_order(config)
    assert order is not None and order[:16].tolist() == [*range(8), *range(16, 24)]
    assert order[-8:].tolist() == list(range(56, 64))
    text = {"architectures": ["Qwen3_5ForCausalLM"], "model_type": "qwen3_5_text"}
    rope = {"mrope_section": [1, 1, 0], "rope_theta": 1e7, "partial_rotary_factor": 0.5}
    config = read(tmp_path, NEXT, **text, num_experts=ABSENT, rope_parameters=rope)
    assert (config.head_dim, config.rope_dim, config.rope.theta) == (256, 128, 1e7)


def test_layers_of_gated_deltanet(tmp_path: Path) -> None:
    """Every fourth layer attends, unless layer_types says otherwise."""
    config = read(tmp_path, HYBRID)
    sizes = DeltaNet(frozenset((0, 2)), 16, 32, 128, 128, 4, packed=True)
    assert config.features.deltanet == sizes and config.windows == (None,) * 4
    config = read(tmp_path, HYBRID, layer_types=ABSENT)
    assert config.features.deltanet == replace(sizes, layers=frozenset((0, 1, 2)))
    assert [layer_part(config, layer) for layer in (2, 3)] == ["linear_attn.", "self_attn."]
    config = read(tmp_path, HYBRID, layer_types=ABSENT, full_attention_interval=1)
    assert config.features.deltanet is None


def test_experts_of_qwen3_next(tmp_path: Path) -> None:
    config = read(tmp_path, NEXT, **EXPERTS, mlp_only_layers=[0])
    experts = Experts(frozenset((1, 2, 3)), 8, 2, 24, 40, router="softmax")
    assert config.features.experts == experts
    config = read(tmp_path, NEXT, **EXPERTS, decoder_sparse_step=2, norm_topk_prob=False)
    assert config.features.experts == replace(experts, layers=frozenset((1, 3)), normalised=False)


def test_layers_without_rotary_embedding(tmp_path: Path) -> None:
    config = read(tmp_path, SMOLLM3)
    assert config.features.unrotated == {3} and config.tied_embeddings
    config = read(tmp_path, SMOLLM3, no_rope_layers=[0, 1, 0, 1, 0], tie_word_embeddings=False)
    assert config.features.unrotated == {0, 2} and not config.tied_embeddings
    assert read(tmp_path, SMOLLM3, no_rope_layer_interval=2).features.unrotated == {1, 3}


def test_granite_swa(tmp_path: Path) -> None:
    config = read(tmp_path, GRANITE, layer_rope_theta=[0, 500, 500, 0], residual_multiplier=0.22)
    features = config.features
    assert features.sinks and features.unrotated == {0, 3} and features.scale == 0.25
    assert (features.residual_scale, features.embedding_scale, features.logits_divisor) == (
        0.22,
        1.0,
        1.0,
    )
    assert config.rope.theta == 500.0 and config.windows == (None, 32, None, 32)
    assert attention_tensors(config, 0)["sinks"] == (4,)
    config = read(tmp_path, GRANITE, rope_theta=77.0)
    assert config.rope.theta == 77.0 and not config.features.unrotated


@pytest.mark.parametrize(
    ("base", "changes", "words"),
    [
        (QWEN3, {"headwise_attn_output_gate": 1}, "headwise_attn_output_gate: expected true"),
        (
            QWEN3,
            {"headwise_attn_output_gate": True, "elementwise_attn_output_gate": True},
            "headwise_attn_output_gate: contradicts elementwise",
        ),
        (LLAMA, {"use_qk_norm": True}, "use_qk_norm: is not part of LlamaForCausalLM"),
        (NEXT, {"layer_types": ["linear_attention"]}, "layer_types: expected a list of 4 entries"),
        (NEXT, {"layer_types": ["sliding_attention"] * 4}, "layer_types: 'sliding_attention' is"),
        (HYBRID, {"linear_num_key_heads": 3}, "linear_num_key_heads: 3 does not divide"),
        (HYBRID, {"linear_conv_kernel_dim": 17}, "linear_conv_kernel_dim: expected an integer"),
        (NEXT, {"num_experts": 8, "num_experts_per_tok": 9}, "num_experts_per_tok: .* 1 to 8"),
        (NEXT, {"num_experts": 8}, "num_experts_per_tok: missing"),
        (NEXT, {**EXPERTS, "mlp_only_layers": "all"}, "mlp_only_layers: expected a list of layers"),
        (NEXT, {"attn_output_gate": False}, "attn_output_gate: false is not supported"),
        (NEXT, {"partial_rotary_factor": 0.1}, "partial_rotary_factor: makes 25 rotary channels"),
        (NEXT, {"partial_rotary_factor": 1.5}, "partial_rotary_factor: above 1"),
        (
            NEXT,
            {"partial_rotary_factor": 0.5, "rope_parameters": {"partial_rotary_factor": 0.25}},
            "partial_rotary_factor: contradicts",
        ),
        (LLAMA, {"partial_rotary_factor": 0.5}, "only 1.0 .the whole head. is supported"),
        (LLAMA, {"rope_parameters": {"mrope_section": [1]}}, "mrope_section: unknown rotary"),
        (SMOLLM3, {"no_rope_layers": [1, 0]}, "no_rope_layers: expected a list of 4 entries"),
        (SMOLLM3, {"no_rope_layers": [1, 0, 2, 1]}, "no_rope_layers: expected 1 .*found 2"),
        (SMOLLM3, {"no_rope_layers": [1, True, 1, 1]}, "no_rope_layers: expected 1 .*found True"),
        (SMOLLM3, {"use_sliding_window": True, "sliding_window": 8}, "needs layer_types"),
        (LLAMA, {"no_rope_layers": [1, 1, 1, 0]}, "no_rope_layers: is not part of"),
        (GRANITE, {"layer_types": ABSENT}, "layer_types: missing: which layers"),
        (GRANITE, {"layer_rope_theta": [500, 0]}, "layer_rope_theta: expected a list of 4"),
        (GRANITE, {"layer_rope_theta": [5, 9, 0, 5]}, "layer_rope_theta: several bases"),
        (GRANITE, {"layer_rope_theta": [5, 1, 0, 5]}, "layer_rope_theta: .*above 1, found 1"),
        (GRANITE, {"logits_scaling": 0}, "logits_scaling: expected a finite and above 0 number"),
        (LLAMA, {"attention_multiplier": 0.5}, "attention_multiplier: is not part of"),
    ],
)
def test_errors_name_the_key(
    tmp_path: Path, base: dict[str, Any], changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(CheckpointError, match=rf"config\.json.*{words}"):
        read(tmp_path, base, **changes)
