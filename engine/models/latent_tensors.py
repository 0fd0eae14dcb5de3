"""The attention tensors of a checkpoint whose layers keep latents."""

from __future__ import annotations

from ..checkpoint.config_json import ModelConfig
from ..checkpoint.latent_config import LatentConfig


def latent_tensors(
    config: ModelConfig, latent: LatentConfig, layer: int, prefix: str
) -> dict[str, tuple[int, ...]]:
    """Name -> shape, named as in DeepSeek's latent attention; g_proj has head-major rows."""
    hidden, heads = config.hidden_size, config.num_heads
    rank, groups, gates = latent.rank(layer), latent.num_groups(layer), latent.num_gates(layer)
    queries = heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "kv_a_proj_with_mqa.weight": (groups * rank + latent.rope_dim, hidden),
        "kv_a_layernorm.weight": (groups * rank,),
        "kv_b_proj.weight": (heads * (latent.nope_dim + latent.v_dim), rank),
        "o_proj.weight": (hidden, heads * latent.v_dim),
    }
    if latent.q_rank is None:
        shapes["q_proj.weight"] = (queries, hidden)
    else:
        shapes["q_a_proj.weight"] = (latent.q_rank, hidden)
        shapes["q_a_layernorm.weight"] = (latent.q_rank,)
        shapes["q_b_proj.weight"] = (queries, latent.q_rank)
    if gates:
        shapes["g_proj.weight"] = (heads * gates, hidden)
    return {prefix + name: shape for name, shape in shapes.items()}


def expanding_elements(config: ModelConfig, latent: LatentConfig) -> int:
    """Elements of the up-projections that local layers hold a second time, packed to expand."""
    per_layer = config.num_heads * (latent.nope_dim + latent.v_dim) * latent.local_rank
    return sum(latent.local_layers) * per_layer
