"""A whole MoSA model in plain torch, in float64, one text at a time: the oracle of all modes.

Written from the paper and the shapes of its code's weights; nothing of Saccade is used.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file


@dataclass
class MosaModel:
    """mode: whole, threshold or stream, and the options of the last two."""

    folder: Path
    mode: str
    capacity: float = 1.25
    burst: int = 32
    tau: float = 0.0
    k: int = 0
    kept: list[list[set[int]]] = field(default_factory=list)  # per layer and head, at the end
    scores: list[torch.Tensor] = field(default_factory=list)  # per layer, float64 [T, E]
    seen: list[list[list[set[int]]]] = field(default_factory=list)  # and of each row

    def __post_init__(self) -> None:
        self.config: dict[str, Any] = json.loads((self.folder / "config.json").read_text())
        self.mosa = self.config["mosa"]
        tensors = load_file(self.folder / "model.safetensors")
        self.weights = {name: each.double() for name, each in tensors.items()}
        path = self.folder / "calibration.json"
        self.thresholds = json.loads(path.read_text())["thresholds"] if path.exists() else None

    def logits(self, tokens: list[int]) -> torch.Tensor:
        """float64 [T, V]"""
        self.kept, self.seen, self.scores = [], [], []
        x = self.weights["model.embed_tokens.weight"][torch.tensor(tokens)]
        for layer in range(self.config["num_hidden_layers"]):
            name = f"model.layers.{layer}."
            x = x + self._attention(layer, self._norm(x, name + "input_layernorm.weight"))
            y = self._norm(x, name + "post_attention_layernorm.weight")
            gate, up, down = (
                self.weights[f"{name}mlp.{part}_proj.weight"] for part in ("gate", "up", "down")
            )
            x = x + (torch.nn.functional.silu(y @ gate.T) * (y @ up.T)) @ down.T
        return self._norm(x, "model.norm.weight") @ self.weights["lm_head.weight"].T

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        scale = (x.square().mean(-1, keepdim=True) + self.config["rms_norm_eps"]).rsqrt()
        return x * scale * self.weights[name]

    def _turn(self, x: torch.Tensor) -> torch.Tensor:
        """Rotary embedding of [T, d] at positions 0 .. T - 1, on the leading channels."""
        size = int(self.mosa["rotate_fraction"] * x.shape[1])
        size -= size % 2
        speeds = 10000.0 ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
        angles = torch.arange(len(x), dtype=torch.float64)[:, None] * speeds
        a, b, rest = x[:, : size // 2], x[:, size // 2 : size], x[:, size:]
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], 1)

    def _attention(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        name, dim = f"model.layers.{layer}.self_attn.", self.mosa["h_prim"]
        total = torch.zeros_like(x)
        for head in range(self.mosa["num_other_heads"]):
            rows = self.weights[name + "other_heads.W_QKV.weight"][
                3 * dim * head : 3 * dim * (head + 1)
            ]
            out = self.weights[name + "other_heads.W_O.weight"][:, dim * head : dim * (head + 1)]
            q, k, v = (x @ rows.T).split(dim, 1)
            everything = [range(t + 1) for t in range(len(x))]
            total += self._softmax(q, k, v, everything) @ out.T
        scores = torch.sigmoid(x @ self.weights[name + "mosa_heads.r.0.weight"].T)
        self.scores.append(scores)
        self.kept.append([])
        self.seen.append([])
        for head in range(self.mosa["num_mosa_heads"]):
            seen, kept = self._choose(scores[:, head].float().tolist(), layer, head)
            q, k, v = (x @ self.weights[name + "mosa_heads.QKV.W"][head]).split(dim, 1)
            y = self._softmax(q, k, v, seen) * scores[:, head, None]
            total += y @ self.weights[name + "mosa_heads.O.W"][head]
            self.kept[-1].append(kept)
            self.seen[-1].append(seen)
        return total

    def _softmax(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seen: list[Any]
    ) -> torch.Tensor:
        """Attention of every row over the positions that it sees; 0 for one that sees none."""
        q, k, out = self._turn(q), self._turn(k), torch.zeros_like(q)
        for t, keys in enumerate(seen):
            if keys:
                index = torch.tensor(sorted(keys))
                out[t] = torch.softmax(k[index] @ q[t] / math.sqrt(q.shape[1]), 0) @ v[index]
        return out

    def _size(self, tokens: int) -> int:
        """The tokens that training keeps of so many."""
        return min(tokens, self.k or max(tokens // self.mosa["sparsity"], 2))

    def _choose(
        self, scores: list[float], layer: int, head: int
    ) -> tuple[list[set[int]], set[int]]:
        """Per row the positions that it sees, none if not chosen; and what is kept at last."""
        first, length = bool(self.mosa["include_first"]), len(scores)
        order = sorted(range(length), key=lambda t: (first and t == 0, scores[t], t))
        if self.mode == "whole":
            best = set(order[length - self._size(length) :])
            past = [{j for j in best if j <= t} for t in range(length)]
            return [keys if t in best else set() for t, keys in enumerate(past)], best
        kept: set[int] = set()
        seen: list[set[int]] = []
        for t in range(length):
            if self.mode == "threshold":
                limit = self.tau or self.thresholds[layer][head]
                wanted = max(int(self.capacity * 100) * (t + 1) // (100 * self.mosa["sparsity"]), 2)
                room = len(kept) < min(t + 1, wanted + self.burst)
                above = scores[t] > torch.tensor(limit).float().item()
                if room and (above or (first and t == 0)):
                    kept.add(t)
            else:
                kept.add(t)
                if len(kept) > self._size(t + 1):
                    kept.remove(min(kept, key=lambda j: (first and j == 0, scores[j], j)))
            seen.append(set(kept) if t in kept else set())
        return seen, kept
