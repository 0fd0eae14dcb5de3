"""An independent model of the families in `tiny_own`: whole text, a row and a head at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

Tensors = dict[str, torch.Tensor]


def norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def rotate(x: torch.Tensor, theta: float) -> torch.Tensor:
    """x [T, d], row t turned by position t."""
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[0])[:, None] * theta ** (-torch.arange(half) / half)
    cos, sin, a, b = angle.cos().to(x), angle.sin().to(x), x[:, :half], x[:, half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def linear(x: torch.Tensor, w: Tensors, name: str) -> torch.Tensor:
    y = x @ w[f"{name}.weight"].T
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


class Oracle:
    """Reads config.json and the tensors by itself."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float64) -> None:
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        tensors = load_file(folder / "model.safetensors")
        self.weights = {name: each.to(dtype) for name, each in tensors.items()}
        self.heads = self.config["num_attention_heads"]
        self.kv_heads = self.config["num_key_value_heads"]
        self.dim = self.config.get("head_dim", self.config["hidden_size"] // self.heads)
        self.eps = self.config["rms_norm_eps"]

    def logits(self, tokens: list[int]) -> torch.Tensor:
        """float32 [T, V]"""
        x = self.weights["model.embed_tokens.weight"][tokens]
        for i in range(self.config["num_hidden_layers"]):
            prefix = f"model.layers.{i}."
            w = {k.removeprefix(prefix): v for k, v in self.weights.items() if k.startswith(prefix)}
            own = {k.removeprefix("self_attn."): v for k, v in w.items() if "self_attn" in k}
            x = x + self.attention(norm(x, w["input_layernorm.weight"], self.eps), own)
            y = norm(x, w["post_attention_layernorm.weight"], self.eps)
            gate, up = (linear(y, w, f"mlp.{name}_proj") for name in ("gate", "up"))
            x = x + linear(torch.nn.functional.silu(gate) * up, w, "mlp.down_proj")
        x = norm(x, self.weights["model.norm.weight"], self.eps)
        return (x @ self.weights["lm_head.weight"].T).float()

    def attention(self, x: torch.Tensor, w: Tensors) -> torch.Tensor:
        rows, group = linear(x, w, "q_proj"), self.heads // self.kv_heads
        keys, values = linear(x, w, "k_proj"), linear(x, w, "v_proj")
        out = []
        for h in range(self.heads):
            q, gate = self.query(rows, h)
            g = slice(h // group * self.dim, (h // group + 1) * self.dim)
            k = keys[:, g]
            if "q_norm.weight" in w:
                q, k = (norm(a, w[f"{b}_norm.weight"], self.eps) for a, b in ((q, "q"), (k, "k")))
            q, k = (rotate(each, self.config.get("rope_theta", 10000.0)) for each in (q, k))
            scores = (q @ k.T / self.dim**0.5).masked_fill(
                torch.ones(len(x), len(x), dtype=torch.bool).triu(1), -torch.inf
            )
            out.append(torch.softmax(scores, -1) @ values[:, g] * gate)
        return linear(torch.cat(out, dim=-1), w, "o_proj")

    def query(self, rows: torch.Tensor, h: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Query [T, d] and gate [T, 1 or d] of a head, from q_proj packed by KV group."""
        group, dim = self.heads // self.kv_heads, self.dim
        wide = self.config.get("elementwise_attn_output_gate", False)
        gates = dim if wide else 1 if self.config.get("headwise_attn_output_gate", False) else 0
        size = group * (dim + gates)
        own = rows[:, h // group * size : (h // group + 1) * size]
        i = h % group
        gate = own[:, group * dim + i * gates : group * dim + (i + 1) * gates]
        query = own[:, i * dim : (i + 1) * dim]
        return query, torch.sigmoid(gate) if gates else torch.ones_like(query)
