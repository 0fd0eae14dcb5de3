"""An independent model of MiniCPM: whole text, in fp64, its masks from InfLLM-V2's definition."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from saccade.engine.attention.infllm import Infllm

from ..methods.infllm_oracle import mask_of
from .own_oracle import Tensors, linear, norm


class MiniCPMOracle:
    """Reads config.json and the tensors by itself."""

    def __init__(self, folder: Path) -> None:
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        tensors = load_file(folder / "model.safetensors")
        self.weights = {name: each.double() for name, each in tensors.items()}
        self.heads, self.width = self.config["num_attention_heads"], self.config["hidden_size"]
        self.depth = self.config["scale_depth"] / self.config["num_hidden_layers"] ** 0.5

    def logits(self, tokens: list[int], prompt: int) -> torch.Tensor:
        """float32 [T, V]; the first `prompt` tokens are not generated ones."""
        eps = self.config["rms_norm_eps"]
        x = self.weights["model.embed_tokens.weight"][tokens] * self.config["scale_emb"]
        for i in range(self.config["num_hidden_layers"]):
            prefix = f"model.layers.{i}."
            w = {k.removeprefix(prefix): v for k, v in self.weights.items() if k.startswith(prefix)}
            y = norm(x, w["input_layernorm.weight"], eps)
            x = x + self.attention(y, w, prompt) * self.depth
            y = norm(x, w["post_attention_layernorm.weight"], eps)
            gate, up = (linear(y, w, f"mlp.{name}_proj") for name in ("gate", "up"))
            x = x + linear(torch.nn.functional.silu(gate) * up, w, "mlp.down_proj") * self.depth
        x = norm(x, self.weights["model.norm.weight"], eps)
        x = x / (self.width / self.config["dim_model_base"])
        return (x @ self.weights["lm_head.weight"].T).float()

    def attention(self, x: torch.Tensor, w: Tensors, prompt: int) -> torch.Tensor:
        q, k, v = (
            linear(x, w, f"self_attn.{name}_proj").unflatten(1, (-1, self.width // self.heads))
            for name in "qkv"
        )
        q, k = (self.turned(each).transpose(0, 1) for each in (q, k))
        k, v = (each.repeat_interleave(2, 0) for each in (k, v.transpose(0, 1)))
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, self.mask(q, k, prompt))
        return linear(out.transpose(0, 1).flatten(1), w, "self_attn.o_proj")

    def mask(self, q: torch.Tensor, k: torch.Tensor, prompt: int) -> torch.Tensor:
        if (sparse := self.config.get("sparse_config")) is None:
            return torch.ones(q.shape[1], q.shape[1], dtype=torch.bool).tril()
        sizes = ("kernel_size", "kernel_stride", "block_size", "topk", "init_blocks", "window_size")
        method = Infllm(*(sparse[name] for name in sizes), sparse["dense_len"])
        return mask_of(q, k, method, prompt)

    def turned(self, x: torch.Tensor) -> torch.Tensor:
        """x [T, H, d], row t turned by position t."""
        half = x.shape[-1] // 2
        frequencies, scale = 10000.0 ** (-torch.arange(half).double() / half), 1.0
        if rope := self.config.get("rope_scaling"):
            longest = self.config["max_position_embeddings"]
            trained = rope["original_max_position_embeddings"]
            frequencies = frequencies / torch.tensor(rope["long_factor"]).double()
            scale = math.sqrt(1 + math.log(longest / trained) / math.log(trained))
        angle = torch.arange(x.shape[0])[:, None, None] * frequencies
        cos, sin, a, b = angle.cos() * scale, angle.sin() * scale, x[..., :half], x[..., half:]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
