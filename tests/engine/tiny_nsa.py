"""Configs of tiny checkpoints with native sparse attention, and of zen-E's siblings without it."""

from __future__ import annotations

from typing import Any

_COMMON: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
_FLA: dict[str, Any] = {
    **_COMMON,
    "architectures": ["NSAForCausalLM"],
    "model_type": "nsa",
    "hidden_act": "swish",
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 16,
    "norm_eps": 1e-6,
    "block_size": 16,
    "block_counts": 3,
    "window_size": 9,
    "nsa_preset": "fla_main",
}
_ZEN: dict[str, Any] = {
    **_COMMON,
    "architectures": ["LlamaNSAForCausalLM"],
    "model_type": "llama-nsa",
    "auto_map": {"AutoModelForCausalLM": "modeling_llama_nsa.LlamaNSAForCausalLM"},
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "block_size": 16,
    "block_counts": 2,
    "window_size": 9,
}
# Everything as in the paper, but small: learned entries, K and V of each branch.
_ENTRY: dict[str, Any] = {
    "v_dim": 12,
    "length": 8,
    "stride": 4,
    "phi": "mlp",
    "phi_hidden": 20,
    "phi_rope": "post",
    "block": 16,
    "topk": 4,
    "init_blocks": 1,
    "local_blocks": 2,
    "forced": "counted",
    "score_map": "overlap",
    "window": 9,
    "window_plus": 0,
    "kv": "separate",
    "gate": "sigmoid",
}
_NATIVE: dict[str, Any] = {
    **_COMMON,
    "architectures": ["NativeSparseForCausalLM"],
    "model_type": "native_sparse",
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-6,
}


def _native(**own: Any) -> dict[str, Any]:
    return {**_NATIVE, "nsa": {**_ENTRY, **own}}


NSA: dict[str, dict[str, Any]] = {
    "nsa_fla": _FLA,
    "nsa_fla_old": {**_FLA, "nsa_preset": "fla_2025_03", "block_counts": 2, "qkv_bias": True},
    "nsa_fla_no_window": {**_FLA, "window_size": None, "num_kv_heads": 1},
    "nsa_zen": _ZEN,
    "nsa_zen_sparse": {**_ZEN, "window_size": 0, "inference_mode": "sparse"},
    "nsa_zen_full": {**_ZEN, "window_size": 0, "inference_mode": "full"},
    "nsa_paper": _native(),
    "nsa_linear": _native(
        phi="linear", phi_hidden=None, phi_rope="block", window_plus=1, kv="shared", v_dim=16
    ),
    "nsa_weighted": _native(
        phi="weighted", phi_hidden=None, length=32, stride=16, score_map="maxpool", topk=3,
        kv="shared", forced="extra", init_blocks=0, local_blocks=1,
    ),
    "nsa_mean": _native(
        phi="mean", phi_hidden=None, phi_rope="block", length=16, stride=8, window=0, v_dim=20
    ),
}  # fmt: skip
