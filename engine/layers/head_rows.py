"""The tensors of an attention layer with K and V, and where the rows of its queries and gates lie.

However a checkpoint packs them, one product gives them in this order: the queries of all heads, the
keys, the values, then the gates of all heads.
"""

from __future__ import annotations

import torch

from ..checkpoint.config_json import ModelConfig
from ..checkpoint.features import Gate
from .weights import linear_tensors


def gates_per_head(config: ModelConfig) -> int:
    """Gates on the output of one head; 0: it has none."""
    gate = config.features.gate
    return 0 if gate is None else config.head_dim if gate.per_channel else 1


def gate_rows(config: ModelConfig) -> int:
    """Gates of all heads that q_proj gives beside the queries."""
    gate = config.features.gate
    in_queries = gate is not None and gate.packing in ("head", "group")
    return config.num_heads * gates_per_head(config) if in_queries else 0


def row_order(config: ModelConfig) -> torch.Tensor | None:
    """int64: for each row of the product, its row among those of q_proj, k_proj and v_proj.

    None where it is the same.
    """
    gate, heads, dim = config.features.gate, config.num_heads, config.head_dim
    if gate is None or not gate_rows(config):
        return None
    together = 1 if gate.packing == "head" else heads // config.num_kv_heads
    queries = heads * dim + gate_rows(config)
    rows = torch.arange(queries).view(heads // together, -1)
    others = torch.arange(queries, queries + 2 * config.num_kv_heads * dim)
    split = together * dim
    return torch.cat([rows[:, :split].flatten(), others, rows[:, split:].flatten()])


def attention_tensors(config: ModelConfig, layer: int) -> dict[str, tuple[int, ...]]:
    """Name -> shape, as the Hugging Face classes name them."""
    hidden, dim, features = config.hidden_size, config.head_dim, config.features
    queries, keys = config.num_heads * dim, config.num_kv_heads * dim
    shapes: dict[str, tuple[int, ...]] = {}
    for name, rows in (
        ("q_proj", queries + gate_rows(config)),
        ("k_proj", keys),
        ("v_proj", keys),
    ):
        shapes |= linear_tensors(name, rows, hidden, config.qkv_bias)
    shapes |= linear_tensors("o_proj", hidden, queries, config.output_bias)
    if config.qk_norm:
        shapes |= {"q_norm.weight": (dim,), "k_norm.weight": (dim,)}
    if layer in features.convolved:
        shapes["k_conv.weight"] = (keys, 1, features.key_taps)
    if features.sinks:
        shapes["sinks"] = (config.num_heads,)
    if features.output_norm_eps is not None:
        shapes["o_norm.weight"] = (dim,)
    if features.gate == Gate(False, "branch"):
        shapes["g_proj.weight"] = (3 * config.num_heads, hidden)
    if features.gate == Gate(True, "low_rank"):
        shapes |= {"g_proj.0.weight": (dim, hidden), "g_proj.1.weight": (queries, dim)}
    return shapes
