"""Random weights for a config.json: checkpoints that transformers itself cannot write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from saccade.engine.checkpoint.config_json import read_config
from saccade.engine.models.tensors import expected_tensors


def write_random(path: Path, config: dict[str, Any], seed: int = 0, dtype: str = "float32") -> Path:
    """Writes a checkpoint folder with all tensors that the config asks for, and returns it."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps({**config, "torch_dtype": dtype}))
    generator = torch.Generator().manual_seed(seed)
    tensors, read = {}, read_config(path)
    for name, shape in expected_tensors(read).items():
        noise = torch.randn(shape, generator=generator)
        if "norm" in name:
            noise = 1 + 0.2 * noise
        elif "embed" in name or len(shape) != 2:
            noise = 0.5 * noise
        else:
            noise = noise * 1.5 / shape[1] ** 0.5
        for part, own in read.tensor_names:
            name = name.replace(part, own)
        tensors[name] = noise.to(getattr(torch, dtype))
    save_file(tensors, path / "model.safetensors")
    return path
