"""An independent model of alternating sparse attention: whole text, one row at a time, no pages,
no absorbed form, no merged projections.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

Tensors = dict[str, torch.Tensor]


def norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def rotate(x: torch.Tensor, theta: float = 10000.0) -> torch.Tensor:
    """x [T, ..., r], row t turned by position t."""
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[0])[:, None] * theta ** (-torch.arange(half) / half)
    angle = angle.reshape(x.shape[0], *[1] * (x.ndim - 2), half).to(x)
    cos, sin, a, b = angle.cos(), angle.sin(), x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def softmax_over(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seen: list[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """(output, probabilities) of one row of one head; no key: 0."""
    if not seen:
        return torch.zeros_like(v[0]), q.new_zeros(0)
    p = torch.softmax(k[seen] @ q / q.shape[0] ** 0.5, dim=0)
    return p @ v[seen], p


def chosen_blocks(mass: list[float], own: int, asa: dict[str, Any]) -> list[int]:
    """The always present, then the heaviest, of equal ones the latest."""
    forced = {j for j in range(own + 1) if j < asa["init_blocks"] or j > own - asa["local_blocks"]}
    others = sorted((j for j in range(own) if j not in forced), key=lambda j: (-mass[j], -j))
    return sorted([*forced, *others[: asa["topk"] - len(forced)]])


def global_heads(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, gates: torch.Tensor, asa: dict[str, Any]
) -> torch.Tensor:
    """[T, heads, v] of the heads of one latent group; q, k [T, heads, d], gates [T, heads, 2]."""
    length, heads, block = q.shape[0], q.shape[1], asa["block"]
    whole = length // block
    mean_k = k[: whole * block].unflatten(0, (whole, block)).mean(1)
    mean_v = v[: whole * block].unflatten(0, (whole, block)).mean(1)
    out = v.new_zeros(length, heads, v.shape[2])
    blocks: list[int] = []
    for t in range(length):
        complete = list(range((t + 1) // block))
        mass = [0.0] * len(complete)
        for h in range(heads):
            coarse, p = softmax_over(q[t, h], mean_k[:, h], mean_v[:, h], complete)
            out[t, h] += gates[t, h, 0] * coarse
            mass = [a + float(b) for a, b in zip(mass, p, strict=True)]
        if t % asa["list_reuse"] == 0:
            blocks = chosen_blocks(mass, t // block, asa)
        keys = [i for j in blocks for i in range(j * block, (j + 1) * block) if i <= t]
        for h in range(heads):
            fine, _ = softmax_over(q[t, h], k[:, h], v[:, h], keys)
            out[t, h] += gates[t, h, 1] * fine
    return out


def local_heads(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int) -> torch.Tensor:
    out = v.new_zeros(q.shape[0], q.shape[1], v.shape[2])
    for t in range(q.shape[0]):
        seen = list(range(max(0, t - window + 1), t + 1))
        for h in range(q.shape[1]):
            out[t, h], _ = softmax_over(q[t, h], k[:, h], v[:, h], seen)
    return out


def attention(x: torch.Tensor, w: Tensors, kind: str, config: dict[str, Any]) -> torch.Tensor:
    asa, eps, heads = config["asa"], config["rms_norm_eps"], config["num_attention_heads"]
    nope, rope, length = asa["nope_dim"], asa["rope_dim"], x.shape[0]
    if asa["q_rank"]:
        low = norm(x @ w["q_a_proj.weight"].T, w["q_a_layernorm.weight"], eps)
        q = low @ w["q_b_proj.weight"].T
    else:
        q = x @ w["q_proj.weight"].T
    q = q.view(length, heads, nope + rope)
    q = torch.cat([q[..., :nope], rotate(q[..., nope:])], dim=-1)
    rank = asa["local_rank"] if kind == "local" else asa["global_rank"]
    groups = 1 if kind == "local" else asa["latent_groups"]
    down = x @ w["kv_a_proj_with_mqa.weight"].T
    rotary = rotate(down[:, groups * rank :])
    size, out = heads // groups, []
    for g in range(groups):
        part = slice(g * rank, (g + 1) * rank)
        latent = norm(down[:, part], w["kv_a_layernorm.weight"][part], eps)
        mine = slice(g * size, (g + 1) * size)
        up = w["kv_b_proj.weight"].view(heads, -1, rank)[mine]
        both = torch.einsum("tr,hor->tho", latent, up)
        k = torch.cat([both[..., :nope], rotary[:, None].expand(-1, size, -1)], dim=-1)
        if kind == "local":
            out.append(local_heads(q[:, mine], k, both[..., nope:], asa["sliding_window"]))
        else:
            gates = torch.sigmoid(x @ w["g_proj.weight"].T).view(length, heads, 2)[:, mine]
            out.append(global_heads(q[:, mine], k, both[..., nope:], gates, asa))
    o = torch.cat(out, dim=1)
    if kind == "local" and asa["local_gate"] == "sigmoid":
        o = o * torch.sigmoid(x @ w["g_proj.weight"].T)[..., None]
    return o.flatten(1) @ w["o_proj.weight"].T


def oracle_logits(
    folder: Path, tokens: list[int], dtype: torch.dtype = torch.float64
) -> torch.Tensor:
    """float32 [T, V], computed in `dtype`."""
    config = json.loads((folder / "config.json").read_text())
    weights = {k: v.to(dtype) for k, v in load_file(folder / "model.safetensors").items()}
    eps, x = config["rms_norm_eps"], weights["model.embed_tokens.weight"][tokens]
    for i, kind in enumerate(config["asa"]["layer_types"]):
        prefix = f"model.layers.{i}."
        w = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        own = {k.removeprefix("self_attn."): v for k, v in w.items() if "self_attn" in k}
        x = x + attention(norm(x, w["input_layernorm.weight"], eps), own, kind, config)
        y = norm(x, w["post_attention_layernorm.weight"], eps)
        gate, up = (y @ w[f"mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        x = x + (torch.nn.functional.silu(gate) * up) @ w["mlp.down_proj.weight"].T
    x = norm(x, weights["model.norm.weight"], eps)
    return (x @ weights["lm_head.weight"].T).float()
