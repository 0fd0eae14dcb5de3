"""config.json: what each family means by its keys, and the refusal of everything else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from saccade.engine.checkpoint.config_json import ModelConfig, read_config
from saccade.engine.errors import CheckpointError

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
}
MISTRAL = {
    **LLAMA,
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "sliding_window": 32,
}
QWEN2 = {
    **LLAMA,
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "use_sliding_window": False,
    "sliding_window": 32,
    "max_window_layers": 3,
}
QWEN3 = {**QWEN2, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}


class _Absent:
    """Stands for a key that is removed; its name in test ids must not change from run to run."""

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT = _Absent()


def read(folder: Path, base: dict[str, Any], **changes: Any) -> ModelConfig:
    values = {key: value for key, value in {**base, **changes}.items() if value is not ABSENT}
    (folder / "config.json").write_text(json.dumps(values))
    return read_config(folder)


def test_llama(tmp_path: Path) -> None:
    config = read(tmp_path, LLAMA)
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (4, 2, 16)
    assert (config.num_layers, config.hidden_size, config.intermediate_size) == (4, 64, 96)
    assert (config.vocab_size, config.max_position, config.rms_norm_eps) == (128, 256, 1e-5)
    assert config.windows == (None,) * 4
    assert not (config.qkv_bias or config.output_bias or config.mlp_bias or config.qk_norm)
    assert not config.tied_embeddings
    assert (config.dtype, config.eos_token_ids, config.bos_token_id) == ("bfloat16", (2,), None)
    assert (config.rope.kind, config.rope.theta) == ("default", 10000.0)
    assert config.attention is None


def test_llama_choices(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        LLAMA,
        num_key_value_heads=ABSENT,
        head_dim=24,
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=True,
        torch_dtype=ABSENT,
        dtype="torch.float16",
        eos_token_id=[5, 7, 5],
        bos_token_id=1,
        rope_theta=500000,
        auto_map={"AutoTokenizer": "x"},
        residual_multiplier=1.0,
        quantization_config=None,
    )
    assert (config.num_kv_heads, config.head_dim) == (4, 24)
    assert config.qkv_bias and config.output_bias and config.mlp_bias and config.tied_embeddings
    assert (config.dtype, config.eos_token_ids, config.bos_token_id) == ("float16", (5, 7), 1)
    assert config.rope.theta == 500000.0


def test_biases_and_norms_of_the_other_families(tmp_path: Path) -> None:
    mistral, qwen2, qwen3 = (read(tmp_path, base) for base in (MISTRAL, QWEN2, QWEN3))
    assert not (mistral.qkv_bias or mistral.output_bias or mistral.qk_norm)
    assert qwen2.qkv_bias and not qwen2.output_bias and not qwen2.qk_norm
    assert qwen3.qk_norm and not qwen3.qkv_bias and not qwen3.output_bias
    assert (qwen2.head_dim, qwen3.head_dim) == (16, 128)
    assert read(tmp_path, QWEN3, attention_bias=True, head_dim=16).output_bias


def test_windows(tmp_path: Path) -> None:
    assert read(tmp_path, MISTRAL).windows == (32,) * 4
    assert read(tmp_path, MISTRAL, sliding_window=None).windows == (None,) * 4
    for base in (QWEN2, QWEN3):
        assert read(tmp_path, base).windows == (None,) * 4
        on = read(tmp_path, base, use_sliding_window=True)
        assert on.windows == (None, None, None, 32)
        none = read(tmp_path, base, use_sliding_window=True, max_window_layers=9)
        assert none.windows == (None,) * 4
    assert read(tmp_path, LLAMA, sliding_window=8, use_sliding_window=False).windows == (None,) * 4
    kinds = ["sliding_attention", "full_attention"] * 2
    mixed = read(tmp_path, QWEN3, use_sliding_window=True, layer_types=kinds)
    assert mixed.windows == (32, None, 32, None)
    for base in (LLAMA, MISTRAL):
        assert read(tmp_path, base, sliding_window=8, layer_types=kinds).windows == (8, None) * 2


def test_end_tokens_come_from_the_generation_config_first(tmp_path: Path) -> None:
    generation = tmp_path / "generation_config.json"
    generation.write_text('{"eos_token_id": [9, 3], "temperature": 0.6}')
    assert read(tmp_path, LLAMA).eos_token_ids == (9, 3)
    generation.write_text("{}")
    assert read(tmp_path, LLAMA).eos_token_ids == (2,)
    assert read(tmp_path, LLAMA, eos_token_id=ABSENT).eos_token_ids == ()
    generation.write_text('{"eos_token_id": 128}')
    with pytest.raises(CheckpointError, match=r"generation_config\.json: eos_token_id.*128"):
        read(tmp_path, LLAMA)


def test_an_attention_entry_is_carried_unread(tmp_path: Path) -> None:
    entry = {"attention": "moba(block=64)"}
    assert read(tmp_path, LLAMA, saccade=entry).attention == entry
    assert read(tmp_path, LLAMA, attention="nsa()").attention == "nsa()"


PUBLISHED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # Configurations as people publish them: the keys that matter, with the noise they come with.
    "Llama 2 7B": (
        {
            "architectures": ["LlamaForCausalLM"],
            "bos_token_id": 1,
            "eos_token_id": 2,
            "hidden_act": "silu",
            "hidden_size": 4096,
            "initializer_range": 0.02,
            "intermediate_size": 11008,
            "max_position_embeddings": 4096,
            "model_type": "llama",
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "num_key_value_heads": 32,
            "pretraining_tp": 1,
            "rms_norm_eps": 1e-05,
            "rope_scaling": None,
            "tie_word_embeddings": False,
            "torch_dtype": "float16",
            "transformers_version": "4.31.0.dev0",
            "use_cache": True,
            "vocab_size": 32000,
        },
        {"head_dim": 128, "dtype": "float16", "tied_embeddings": False},
    ),
    "Llama 3.1 8B": (
        {
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": 128000,
            "eos_token_id": [128001, 128008, 128009],
            "hidden_act": "silu",
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "max_position_embeddings": 131072,
            "mlp_bias": False,
            "model_type": "llama",
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-05,
            "rope_scaling": {
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
            "rope_theta": 500000.0,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "vocab_size": 128256,
        },
        {"head_dim": 128, "num_kv_heads": 8, "eos_token_ids": (128001, 128008, 128009)},
    ),
    "SmolLM 135M": (
        {
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": False,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "hidden_act": "silu",
            "hidden_size": 576,
            "intermediate_size": 1536,
            "is_llama_config": True,
            "max_position_embeddings": 8192,
            "model_type": "llama",
            "num_attention_heads": 9,
            "num_hidden_layers": 30,
            "num_key_value_heads": 3,
            "pretraining_tp": 1,
            "rms_norm_eps": 1e-05,
            "rope_interleaved": False,
            "rope_scaling": None,
            "rope_theta": 100000,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "vocab_size": 49152,
        },
        {"head_dim": 64, "tied_embeddings": True, "eos_token_ids": (0,)},
    ),
    "Mistral Nemo": (
        {
            "architectures": ["MistralForCausalLM"],
            "head_dim": 128,
            "hidden_act": "silu",
            "hidden_size": 5120,
            "intermediate_size": 14336,
            "max_position_embeddings": 131072,
            "model_type": "mistral",
            "num_attention_heads": 32,
            "num_hidden_layers": 40,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-05,
            "rope_theta": 1000000.0,
            "sliding_window": None,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "vocab_size": 131072,
        },
        {"head_dim": 128, "windows": (None,) * 40, "eos_token_ids": ()},
    ),
    "Qwen2.5 7B with yarn": (
        {
            "architectures": ["Qwen2ForCausalLM"],
            "hidden_act": "silu",
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "max_position_embeddings": 131072,
            "max_window_layers": 28,
            "model_type": "qwen2",
            "num_attention_heads": 28,
            "num_hidden_layers": 28,
            "num_key_value_heads": 4,
            "rms_norm_eps": 1e-06,
            "rope_scaling": {
                "factor": 4.0,
                "original_max_position_embeddings": 32768,
                "type": "yarn",
            },
            "rope_theta": 1000000.0,
            "sliding_window": 131072,
            "tie_word_embeddings": False,
            "use_mrope": False,
            "use_sliding_window": False,
            "torch_dtype": "bfloat16",
            "vocab_size": 152064,
        },
        {"qkv_bias": True, "windows": (None,) * 28, "head_dim": 128},
    ),
    "Qwen3 0.6B": (
        {
            "architectures": ["Qwen3ForCausalLM"],
            "attention_bias": False,
            "head_dim": 128,
            "hidden_act": "silu",
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "max_position_embeddings": 40960,
            "max_window_layers": 28,
            "model_type": "qwen3",
            "num_attention_heads": 16,
            "num_hidden_layers": 28,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-06,
            "rope_scaling": None,
            "rope_theta": 1000000,
            "sliding_window": None,
            "tie_word_embeddings": True,
            "use_sliding_window": False,
            "torch_dtype": "bfloat16",
            "vocab_size": 151936,
        },
        {"qk_norm": True, "tied_embeddings": True, "qkv_bias": False},
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations(tmp_path: Path, name: str) -> None:
    values, expected = PUBLISHED[name]
    config = read(tmp_path, values)
    assert {key: getattr(config, key) for key in expected} == expected
    scaling = values["rope_scaling"] if values.get("rope_scaling") else {}
    assert config.rope.kind == scaling.get("rope_type", scaling.get("type", "default"))


REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (LLAMA, {"architectures": ["GPT2LMHeadModel"]}, "architectures.*GPT2LMHeadModel.*Qwen3ForC"),
    (LLAMA, {"architectures": ABSENT}, "architectures"),
    (LLAMA, {"architectures": "LlamaForCausalLM"}, "architectures"),
    (LLAMA, {"architectures": [["LlamaForCausalLM"]]}, "architectures"),
    (LLAMA, {"model_type": "mistral"}, "model_type"),
    (LLAMA, {"hidden_act": "gelu"}, "hidden_act.*'gelu'.*supported: silu"),
    (LLAMA, {"quantization_config": {"bits": 4}}, "quantization_config"),
    (LLAMA, {"num_local_experts": 8}, "num_local_experts"),
    (LLAMA, {"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
    (LLAMA, {"rope_interleaved": True}, "rope_interleaved"),
    (LLAMA, {"auto_map": {"AutoModelForCausalLM": "m.M"}}, "auto_map"),
    (LLAMA, {"auto_map": "m.M"}, "auto_map"),
    (LLAMA, {"num_key_value_heads": 3}, "num_key_value_heads.*3.*4"),
    (LLAMA, {"num_attention_heads": 6, "num_key_value_heads": 6}, "num_attention_heads.*64"),
    (LLAMA, {"head_dim": 15}, "head_dim"),
    (LLAMA, {"head_dim": 2}, "head_dim"),
    (LLAMA, {"vocab_size": ABSENT}, "vocab_size: missing"),
    (LLAMA, {"hidden_size": None}, "hidden_size: missing"),
    (LLAMA, {"hidden_size": "64"}, "hidden_size.*'64'"),
    (LLAMA, {"hidden_size": 64.0}, "hidden_size"),
    (LLAMA, {"num_hidden_layers": True}, "num_hidden_layers"),
    (LLAMA, {"num_hidden_layers": 0}, "num_hidden_layers"),
    (LLAMA, {"num_hidden_layers": 10**9}, "num_hidden_layers"),
    (LLAMA, {"max_position_embeddings": -1}, "max_position_embeddings"),
    (LLAMA, {"rms_norm_eps": 0}, "rms_norm_eps"),
    (LLAMA, {"rms_norm_eps": "1e-6"}, "rms_norm_eps"),
    (LLAMA, {"tie_word_embeddings": 1}, "tie_word_embeddings"),
    (LLAMA, {"torch_dtype": "int8"}, "torch_dtype.*int8.*bfloat16"),
    (LLAMA, {"dtype": "float32"}, "torch_dtype.*contradicts"),
    (LLAMA, {"eos_token_id": -1}, "eos_token_id"),
    (LLAMA, {"eos_token_id": [1, "2"]}, "eos_token_id"),
    (LLAMA, {"sliding_window": 8}, "sliding_window.*layer_types"),
    (LLAMA, {"layer_types": ["full_attention"]}, "layer_types.*4"),
    (LLAMA, {"layer_types": ["sliding_attention"] * 4}, "layer_types.*sliding_window"),
    (LLAMA, {"layer_types": ["linear_attention"] * 4}, "layer_types.*linear_attention"),
    (LLAMA, {"layer_types": "full_attention"}, "layer_types"),
    (LLAMA, {"attention": 3}, "attention"),
    (LLAMA, {"attention": "a", "saccade": "b"}, "attention.*contradicts"),
    (MISTRAL, {"attention_bias": True}, "attention_bias"),
    (MISTRAL, {"mlp_bias": True}, "mlp_bias"),
    (MISTRAL, {"sliding_window": 0}, "sliding_window"),
    (MISTRAL, {"sliding_window": ABSENT}, "sliding_window"),
    (MISTRAL, {"num_key_value_heads": ABSENT}, "num_key_value_heads: missing"),
    (QWEN2, {"attention_bias": False}, "attention_bias"),
    (QWEN2, {"use_sliding_window": True, "sliding_window": None}, "sliding_window"),
    (QWEN3, {"use_sliding_window": True, "max_window_layers": ABSENT}, "max_window_layers"),
    (QWEN3, {"layer_types": ["sliding_attention"] * 4}, "layer_types"),
    (LLAMA, {"rope_scaling": {"type": "su", "factor": 2.0}}, "rope_scaling: type.*su"),
    (LLAMA, {"rope_scaling": {"type": "linear"}}, "rope_scaling: factor: missing"),
    (LLAMA, {"rope_scaling": {"type": "linear", "factor": 0}}, "factor"),
    (LLAMA, {"rope_scaling": {"type": "linear", "rope_type": "yarn", "factor": 2}}, "contradicts"),
    (LLAMA, {"rope_scaling": {"rope_type": "dynamic", "factor": 2, "alpha": 1000}}, "alpha"),
    (LLAMA, {"rope_scaling": {"rope_type": "llama3", "factor": 8}}, "low_freq_factor: missing"),
    (LLAMA, {"rope_scaling": {"rope_type": ["yarn"], "factor": 8}}, "rope_type"),
    (LLAMA, {"rope_scaling": [1]}, "rope_scaling"),
    (LLAMA, {"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "per layer type"),
    (LLAMA, {"rope_parameters": {"rope_theta": 1e6}, "rope_theta": 1e4}, "rope_theta.*contradicts"),
    (
        LLAMA,
        {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"type": "linear"}},
        "rope_scaling.*contradicts",
    ),
    (LLAMA, {"rope_theta": 1.0}, "rope_theta"),
    (LLAMA, {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
]


@pytest.mark.parametrize(("base", "changes", "message"), REFUSED, ids=lambda value: str(value)[:60])
def test_refusals_name_file_and_key(
    tmp_path: Path, base: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=rf"config\.json: .*{message}"):
        read(tmp_path, base, **changes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b"[]", "expected a JSON object"),
        (b'{"a": 1', "not valid JSON"),
        (b'{"a": 1, "a": 2}', "'a' appears twice"),
        (b'{"a": {"b": 1, "b": 1}}', "'b' appears twice"),
        (b'{"a": NaN}', "NaN"),
        (b'{"rms_norm_eps": \xff}', "not valid JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b" " * (5 << 20), "larger than"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_broken_json(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"config\.json: .*{message}"):
        read_config(tmp_path)


def test_overflowing_numbers_are_refused(tmp_path: Path) -> None:
    text = json.dumps(LLAMA).replace("1e-05", "1e999")
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"rms_norm_eps.*finite"):
        read_config(tmp_path)
