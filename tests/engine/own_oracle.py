"""An independent model of the families in `tiny_own`: whole text, a row and a head at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

Tensors = dict[str, torch.Tensor]
FLA = {
    "model.embed_tokens": "model.embeddings",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "mlp_norm",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "rms_norm_eps": "norm_eps",
}


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


def convolved(k: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """k [T, d] + silu of the weighted sum of each key and those before it; weight [d, W]."""
    width, rows = weight.shape[1], []
    for t in range(k.shape[0]):
        before = [k[t - i] * weight[:, width - 1 - i] for i in range(min(width, t + 1))]
        rows.append(k[t] + torch.nn.functional.silu(torch.stack(before).sum(0)))
    return torch.stack(rows)


class Oracle:
    """Reads config.json and the tensors by itself."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float64) -> None:
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        self.fla = self.config["model_type"] == "moba"
        tensors = load_file(folder / "model.safetensors")
        self.weights = {name: each.to(dtype) for name, each in tensors.items()}
        self.heads = self.get("num_attention_heads")
        self.kv_heads = self.get("num_key_value_heads") or self.heads
        self.dim = self.config.get("head_dim", self.config["hidden_size"] // self.heads)
        self.eps = self.get("rms_norm_eps")
        kinds = self.config.get(
            "layer_types", ["full_attention"] * self.config["num_hidden_layers"]
        )
        self.full = [i for i, kind in enumerate(kinds) if kind == "full_attention"]
        chosen = self.config.get("moba_layers", self.full)
        self.moba_layers = chosen if "moba_chunk_size" in self.config else []

    def name(self, text: str) -> str:
        return FLA.get(text, text) if self.fla else text

    def get(self, key: str) -> Any:
        return self.config[self.name(key)]

    def logits(self, tokens: list[int], prompt: int) -> torch.Tensor:
        """float32 [T, V]; the first `prompt` tokens are not generated ones."""
        x = self.weights[self.name("model.embed_tokens") + ".weight"][tokens]
        for i in range(self.config["num_hidden_layers"]):
            prefix = f"model.layers.{i}."
            w = {k.removeprefix(prefix): v for k, v in self.weights.items() if k.startswith(prefix)}
            part = "attn." if self.fla else "self_attn."
            own = {k.removeprefix(part): v for k, v in w.items() if k.startswith(part)}
            first, second = (
                w[self.name(each) + ".weight"]
                for each in ("input_layernorm", "post_attention_layernorm")
            )
            x = x + self.attention(norm(x, first, self.eps), own, i, prompt)
            y = norm(x, second, self.eps)
            gate, up = (linear(y, w, f"mlp.{name}_proj") for name in ("gate", "up"))
            x = x + linear(torch.nn.functional.silu(gate) * up, w, "mlp.down_proj")
        x = norm(x, self.weights["model.norm.weight"], self.eps)
        return (x @ self.weights["lm_head.weight"].T).float()

    def attention(self, x: torch.Tensor, w: Tensors, layer: int, prompt: int) -> torch.Tensor:
        rows, group = linear(x, w, "q_proj"), self.heads // self.kv_heads
        keys, values = linear(x, w, "k_proj"), linear(x, w, "v_proj")
        out = []
        for h in range(self.heads):
            q, gate = self.query(rows, h)
            g = slice(h // group * self.dim, (h // group + 1) * self.dim)
            k = keys[:, g]
            if "q_norm.weight" in w:
                eps = 1e-5 if self.fla else self.eps
                q, k = (norm(a, w[f"{b}_norm.weight"], eps) for a, b in ((q, "q"), (k, "k")))
            if "k_conv.weight" in w:
                k = convolved(k, w["k_conv.weight"][g, 0])
            if not (layer in self.moba_layers and self.config.get("moba_nope", False)):
                q, k = (rotate(each, self.config.get("rope_theta", 10000.0)) for each in (q, k))
            scores = (q @ k.T / self.dim**0.5).masked_fill(
                ~self.seen(q, k, layer, prompt), -torch.inf
            )
            head = torch.softmax(scores, -1) @ values[:, g]
            if "o_norm.weight" in w:
                head = norm(head, w["o_norm.weight"], 1e-6)
            if "g_proj.0.weight" in w:
                low = x @ w["g_proj.0.weight"].T @ w["g_proj.1.weight"].T
                gate = torch.sigmoid(low[:, h * self.dim : (h + 1) * self.dim])
            out.append(head * gate)
        return linear(torch.cat(out, dim=-1), w, "o_proj")

    def seen(self, q: torch.Tensor, k: torch.Tensor, layer: int, prompt: int) -> torch.Tensor:
        """bool [T, T]: the keys that each row of a head reads."""
        mask = torch.ones(len(q), len(q), dtype=torch.bool).tril()
        if layer not in self.full:
            return mask.triu(1 - self.config["sliding_window"])
        if layer not in self.moba_layers:
            return mask
        block, topk = self.config["moba_chunk_size"], self.config["moba_topk"]
        history = topk - self.config.get("moba_topk_includes_current", True)
        sparse = self.config.get("moba_decode", "dense") == "sparse"
        for t in range(len(q) if sparse else min(prompt, len(q))):
            own = t // block
            score = [float(q[t] @ k[j * block : (j + 1) * block].mean(0)) for j in range(own)]
            best = sorted(range(own), key=lambda j: (-score[j], -j))[:history]
            for j in set(range(own)) - set(best):
                mask[t, j * block : (j + 1) * block] = False
        return mask

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
