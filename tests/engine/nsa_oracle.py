"""An independent model of native sparse attention: whole text, one row at a time, no pages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from .own_oracle import FLA, Tensors, linear, norm, rotate


class NsaOracle:
    """Reads config.json and the tensors by itself."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float64) -> None:
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        self.fla = self.config["model_type"] == "nsa"
        tensors = load_file(folder / "model.safetensors")
        self.weights = {name: each.to(dtype) for name, each in tensors.items()}
        self.heads, self.kv = self.get("num_attention_heads"), self.get("num_key_value_heads")
        self.dim = self.config.get("head_dim", self.config["hidden_size"] // self.heads)
        self.eps = self.get("rms_norm_eps")
        self.nsa = self.config.get("nsa") or self.of_blocks()
        self.v_dim = self.nsa["v_dim"]

    def name(self, text: str) -> str:
        return FLA.get(text, text) if self.fla else text

    def get(self, key: str) -> Any:
        return self.config[self.name(key)]

    def of_blocks(self) -> dict[str, Any]:
        block = self.config["block_size"]
        main = self.config.get("nsa_preset") == "fla_main"
        return {
            "v_dim": self.dim, "length": block, "stride": block, "block": block, "phi": "mean",
            "phi_rope": "post", "topk": self.config["block_counts"], "init_blocks": int(main),
            "local_blocks": 1 + main, "forced": "counted", "score_map": "overlap",
            "window": self.config["window_size"] or 0, "window_plus": 0, "kv": "shared",
        }  # fmt: skip

    def logits(self, tokens: list[int], prompt: int = 0) -> torch.Tensor:
        """float32 [T, V]"""
        embedding = self.weights[self.name("model.embed_tokens") + ".weight"]
        x = embedding[tokens]
        for i in range(self.config["num_hidden_layers"]):
            prefix, part = f"model.layers.{i}.", "attn." if self.fla else "self_attn."
            w = {k.removeprefix(prefix): v for k, v in self.weights.items() if k.startswith(prefix)}
            own = {k.removeprefix(part): v for k, v in w.items() if k.startswith(part)}
            first, second = (
                w[self.name(each) + ".weight"]
                for each in ("input_layernorm", "post_attention_layernorm")
            )
            x = x + self.attention(norm(x, first, self.eps), own)
            y = norm(x, second, self.eps)
            gate, up = (linear(y, w, f"mlp.{name}_proj") for name in ("gate", "up"))
            x = x + linear(torch.nn.functional.silu(gate) * up, w, "mlp.down_proj")
        x = norm(x, self.weights["model.norm.weight"], self.eps)
        tied = self.config.get("tie_word_embeddings", False)
        return (x @ (embedding if tied else self.weights["lm_head.weight"]).T).float()

    def attention(self, x: torch.Tensor, w: Tensors) -> torch.Tensor:
        length, sets = x.shape[0], 3 if self.nsa["kv"] == "separate" else 1
        q = linear(x, w, "q_proj").view(length, self.heads, self.dim)
        k = linear(x, w, "k_proj").view(length, sets, self.kv, self.dim)
        v = linear(x, w, "v_proj").view(length, sets, self.kv, self.v_dim)
        gates = torch.sigmoid(x @ w["g_proj.weight"].T).view(length, self.heads, 3)
        out = x.new_zeros(length, self.heads, self.v_dim)
        for g in range(self.kv):
            heads = [h for h in range(self.heads) if h * self.kv // self.heads == g]
            pairs = [(k[:, n % sets, g], v[:, n % sets, g]) for n in range(3)]
            queries = [rotate(q[:, h], self.config.get("rope_theta", 10000.0)) for h in heads]
            found = self.group(torch.stack(queries, 1), pairs, gates[:, heads], w, g)
            for i, h in enumerate(heads):
                out[:, h] = found[:, i]
        return linear(out.flatten(1), w, "o_proj")

    def group(
        self, q: torch.Tensor, pairs: list[Any], gates: torch.Tensor, w: Tensors, g: int
    ) -> torch.Tensor:
        """[T, heads, dv] of the heads of one KV head; keys come without rotary embedding."""
        nsa, theta = self.nsa, self.config.get("rope_theta", 10000.0)
        turned = [(rotate(k, theta), v) for k, v in pairs]
        bare = not self.fla and self.config["model_type"] == "llama-nsa" and not nsa["window"]
        full = bare and self.config["inference_mode"] == "full"
        entry_k, entry_v = self.entries(pairs[0], turned[0], w, g)
        out = []
        for t in range(q.shape[0]):
            seen = [i for i in range(len(entry_k)) if i * nsa["stride"] + nsa["length"] <= t + 1]
            coarse, mass = self.softmax(q[t], entry_k[seen], entry_v[seen])
            keys = list(range(t + 1)) if full else self.chosen(mass.sum(0), t)
            fine, _ = self.softmax(q[t], turned[1][0][keys], turned[1][1][keys])
            row = gates[t, :, 1:2] * fine
            if not bare:
                row = row + gates[t, :, :1] * coarse
            if nsa["window"]:
                near = list(range(max(0, t + 1 - nsa["window"] - nsa["window_plus"]), t + 1))
                local, _ = self.softmax(q[t], turned[2][0][near], turned[2][1][near])
                row = row + gates[t, :, 2:] * local
            out.append(row)
        return torch.stack(out)

    def softmax(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Output [heads, dv] and probabilities of one row; without keys 0."""
        if not len(k):
            return q.new_zeros(q.shape[0], self.v_dim), q.new_zeros(q.shape[0], 0)
        p = torch.softmax(q @ k.T / self.dim**0.5, -1)
        return p @ v, p

    def chosen(self, mass: torch.Tensor, t: int) -> list[int]:
        """The keys of the blocks that a row reads, token by token."""
        nsa = self.nsa
        block, own = nsa["block"], t // nsa["block"]
        weight = [0.0] * (own + 1)
        for i, p in enumerate(mass.tolist()):
            tokens = range(i * nsa["stride"], i * nsa["stride"] + nsa["length"])
            for j in {token // block for token in tokens} & set(range(own + 1)):
                shared = sum(token // block == j for token in tokens) / nsa["stride"]
                best = nsa["score_map"] == "maxpool"
                weight[j] = max(weight[j], p) if best else weight[j] + p * shared
        first, recent = nsa["init_blocks"], nsa["local_blocks"]
        forced = {j for j in range(own + 1) if j < first or j > own - recent}
        count = nsa["topk"] + (first + recent if nsa["forced"] == "extra" else 0)
        others = sorted(set(range(own + 1)) - forced, key=lambda j: (-weight[j], -j))
        blocks = {*forced, *others[: max(0, count - len(forced))]}
        return [i for i in range(t + 1) if i // block in blocks]

    def entries(
        self, plain: Any, turned: Any, w: Tensors, g: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        nsa, theta = self.nsa, self.config.get("rope_theta", 10000.0)
        block = nsa["phi_rope"] == "block"
        source, made = plain[0] if block else turned[0], ([], [])
        for start in range(0, len(source) - nsa["length"] + 1, nsa["stride"]):
            span = slice(start, start + nsa["length"])
            key = self.phi(source[span], w, "compress_k", g)
            if block:  # turned by the position of the first token
                key = rotate(key.expand(start + 1, -1), theta)[start]
            made[0].append(key)
            made[1].append(self.phi(plain[1][span], w, "compress_v", g))
        if not made[0]:
            return source[:0], plain[1][:0]
        return torch.stack(made[0]), torch.stack(made[1])

    def phi(self, x: torch.Tensor, w: Tensors, name: str, g: int) -> torch.Tensor:
        """One window [length, d] -> [d]."""
        kind = self.nsa["phi"]
        if kind == "mean":
            return x.mean(0)
        x = x + w[f"{name}.position"][g]
        if kind == "weighted":
            return w[f"{name}.weight"][g] @ x
        if kind == "linear":
            return w[f"{name}.weight"][g] @ x.flatten()
        return w[f"{name}.down"][g] @ torch.relu(w[f"{name}.up"][g] @ x.flatten())
