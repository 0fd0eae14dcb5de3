"""Tiny random checkpoints whose heads choose their tokens, beside dense heads or alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from saccade.engine.checkpoint.config_json import read_config
from saccade.engine.models.tensors import expected_tensors

MOSA: dict[str, Any] = {
    "h_prim": 16,
    "num_mosa_heads": 3,
    "num_other_heads": 2,
    "max_seq_len": 128,
    "sparsity": 4,
    "hybrid_type": "dense",
    "include_first": 0,
    "rotate_fraction": 0.5,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "mosa": {},
    # The first token always; no dense heads; whole heads turn; lists of odd lengths.
    "mosa_pure": {
        "num_mosa_heads": 5,
        "num_other_heads": 0,
        "sparsity": 3,
        "include_first": 1,
        "rotate_fraction": 1.0,
    },
}


def mosa_config(family: str = "mosa", **overrides: Any) -> dict[str, Any]:
    """config.json of a variant; overrides of the entry `mosa` or of the rest, by key."""
    mosa = {**MOSA, **VARIANTS[family]}
    mosa.update({key: overrides.pop(key) for key in list(overrides) if key in mosa})
    return {
        "architectures": ["MosaForCausalLM"],
        "model_type": "mosa",
        "vocab_size": 128,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-6,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "mosa": mosa,
        **overrides,
    }


def write_tiny_mosa(
    path: Path,
    family: str = "mosa",
    *,
    seed: int = 0,
    dtype: str = "float32",
    calibrated: bool = True,
    **overrides: Any,
) -> Path:
    """Writes a checkpoint folder with random weights, and thresholds if calibrated; returns it."""
    path.mkdir(parents=True, exist_ok=True)
    config = {**mosa_config(family, **overrides), "torch_dtype": dtype}
    (path / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in expected_tensors(read_config(path)).items():
        noise = torch.randn(shape, generator=generator)
        if "norm" in name:
            noise = 1 + 0.2 * noise
        elif "embed" in name:
            noise = 0.5 * noise
        else:
            noise = noise * 1.5 / shape[1] ** 0.5
        tensors[name] = noise.to(getattr(torch, dtype))
    save_file(tensors, path / "model.safetensors")
    if calibrated:
        shape = (config["num_hidden_layers"], config["mosa"]["num_mosa_heads"])
        thresholds = 0.6 + 0.2 * torch.rand(shape, generator=generator)
        (path / "calibration.json").write_text(json.dumps({"thresholds": thresholds.tolist()}))
    return path
