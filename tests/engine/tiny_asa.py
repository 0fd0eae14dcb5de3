"""Tiny random checkpoints with alternating sparse attention over latents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .tiny_weights import write_random

ASA: dict[str, Any] = {
    "layer_types": ["local", "global", "local", "global"],
    "sliding_window": 21,
    "q_rank": None,
    "nope_dim": 12,
    "rope_dim": 8,
    "v_dim": 10,
    "local_rank": 24,
    "global_rank": 20,
    "latent_groups": 2,
    "block": 16,
    "topk": 3,
    "init_blocks": 1,
    "local_blocks": 1,
    "list_reuse": 4,
    "compression": "mean",
    "global_gate": "sigmoid",
    "local_gate": "none",
}
VARIANTS: dict[str, dict[str, Any]] = {
    "asa": {},
    # A low-rank query, gated local layers, lists of a row's own, another alternation.
    "asa_wide": {
        "layer_types": ["global", "local", "local", "global"],
        "q_rank": 24,
        "local_gate": "sigmoid",
        "list_reuse": 1,
        "block": 32,
        "topk": 2,
        "init_blocks": 0,
        "sliding_window": 40,
    },
}


def asa_config(family: str = "asa", **overrides: Any) -> dict[str, Any]:
    """config.json of a variant; overrides of the entry `asa` or of the rest, by key."""
    asa = {**ASA, **VARIANTS[family]}
    asa.update({key: overrides.pop(key) for key in list(overrides) if key in asa})
    return {
        "architectures": ["AsaForCausalLM"],
        "model_type": "asa",
        "vocab_size": 128,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": len(asa["layer_types"]),
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-6,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "asa": asa,
        **overrides,
    }


def write_tiny_asa(
    path: Path, family: str = "asa", *, seed: int = 0, dtype: str = "float32", **overrides: Any
) -> Path:
    """Writes a checkpoint folder with random weights and returns it."""
    return write_random(path, asa_config(family, **overrides), seed, dtype)
