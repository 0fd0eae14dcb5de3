"""Tiny random checkpoints of families whose models transformers does not have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .tiny_nsa import NSA
from .tiny_weights import write_random

_COMMON: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
_QWEN3: dict[str, Any] = {
    **_COMMON,
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "rms_norm_eps": 1e-6,
}
_LLAMA: dict[str, Any] = {
    **_COMMON,
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "moba_chunk_size": 16,
    "moba_topk": 2,
}
_FLA: dict[str, Any] = {
    **_COMMON,
    "architectures": ["MoBAForCausalLM"],
    "model_type": "moba",
    "hidden_act": "swish",
    "num_heads": 4,
    "norm_eps": 1e-6,
    "moba_chunk_size": 16,
    "moba_topk": 2,
}
_MINICPM: dict[str, Any] = {
    **_COMMON,
    "architectures": ["MiniCPMForCausalLM"],
    "auto_map": {"AutoModelForCausalLM": "modeling_minicpm.MiniCPMForCausalLM"},
    "model_type": "minicpm",
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "scale_emb": 3,
    "scale_depth": 1.4,
    "dim_model_base": 16,
    "tie_word_embeddings": False,
}
_SPARSE: dict[str, Any] = {
    "kernel_size": 16,
    "kernel_stride": 16,
    "init_blocks": 1,
    "block_size": 16,
    "window_size": 16,
    "topk": 2,
    "use_nope": False,
    "dense_len": 40,
}
OWN: dict[str, dict[str, Any]] = {
    **NSA,
    "minicpm": {**_MINICPM, "sparse_config": _SPARSE},
    "minicpm_long": {
        **_MINICPM,
        "sparse_config": {**_SPARSE, "kernel_size": 32, "block_size": 32, "window_size": 0},
        "rope_scaling": {
            "rope_type": "longrope",
            "original_max_position_embeddings": 64,
            "short_factor": [9.0] * 8,
            "long_factor": [1.0, 1.2, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0],
        },
    },
    "minicpm_dense": _MINICPM,
    "gated_heads": {**_QWEN3, "headwise_attn_output_gate": True, "qkv_bias": True},
    "gated_channels": {**_QWEN3, "elementwise_attn_output_gate": True, "use_qk_norm": False},
    "moba_keys": {**_LLAMA, "moba_layers": [0, 2]},
    # FlashMoBA's alternation: windows with rotary embedding, MoBA without, over convolved keys.
    "moba_kconv": {
        **_LLAMA,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        "sliding_window": 9,
        "moba_topk": 3,
        "moba_decode": "sparse",
        "moba_nope": True,
        "moba_kconv_width": 5,
    },
    "moba_kconv_rope": {
        **_LLAMA,
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "head_dim": 16,
        "moba_topk": 1,
        "moba_topk_includes_current": False,
        "moba_layers": [1],
        "moba_kconv_width": 3,
        "elementwise_attn_output_gate": True,
    },
    "moba_fla": {**_FLA, "num_kv_heads": 2, "qk_norm": True, "moba_decode": "sparse"},
    "moba_fla_plain": {**_FLA, "num_kv_heads": None, "use_output_gate": False, "qkv_bias": True},
}


def own_config(family: str, **overrides: Any) -> dict[str, Any]:
    """config.json of one of these families."""
    return {**OWN[family], **overrides}


def write_tiny_own(
    path: Path, family: str, *, seed: int = 0, dtype: str = "float32", **overrides: Any
) -> Path:
    """Writes a checkpoint folder with random weights and returns it."""
    return write_random(path, own_config(family, **overrides), seed, dtype)
