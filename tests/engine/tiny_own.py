"""Tiny random checkpoints of families whose models transformers does not have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
OWN: dict[str, dict[str, Any]] = {
    "gated_heads": {**_QWEN3, "headwise_attn_output_gate": True, "qkv_bias": True},
    "gated_channels": {**_QWEN3, "elementwise_attn_output_gate": True, "use_qk_norm": False},
}


def own_config(family: str, **overrides: Any) -> dict[str, Any]:
    """config.json of one of these families."""
    return {**OWN[family], **overrides}


def write_tiny_own(
    path: Path, family: str, *, seed: int = 0, dtype: str = "float32", **overrides: Any
) -> Path:
    """Writes a checkpoint folder with random weights and returns it."""
    return write_random(path, own_config(family, **overrides), seed, dtype)
