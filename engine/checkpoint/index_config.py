"""Layers with an indexer, and MiniMax-M3's keys in config.json, as transformers writes them.

layer_types: "minimax_m3_sparse" or "full_attention" per layer. index_n_heads, index_head_dim: of an
indexer. index_block_size, index_topk_blocks, index_local_blocks: in tokens and blocks.
mlp_layer_types: "sparse" (experts) or "dense" per layer.
"""

from __future__ import annotations

from dataclasses import dataclass

from .features import Experts, Features, SwiGLU
from .json_object import Fields
from .variant import OrdinaryHeads

_SPARSE = "minimax_m3_sparse"


@dataclass(frozen=True)
class IndexConfig(OrdinaryHeads):
    """Which layers have an indexer, and its sizes."""

    layers: frozenset[int]
    num_layers: int
    index_heads: int
    index_dim: int
    method: str  # the spec of these layers

    @property
    def windows(self) -> tuple[None, ...]:
        """Every layer sees everything."""
        return (None,) * self.num_layers

    @property
    def specs(self) -> dict[str, str]:
        """The method where there is an indexer; dense attention elsewhere."""
        own = [f"{layer}:{self.method}" for layer in sorted(self.layers)]
        return {"attention": "; ".join([*own, "*:dense"])}


def read_minimax(config: Fields, num_layers: int) -> IndexConfig:
    """CheckpointError for a key that is missing or does not fit the others."""
    layers = _layers(config, "layer_types", num_layers, _SPARSE, "full_attention")
    heads, index_heads = config.integer("num_attention_heads"), config.integer("index_n_heads")
    if heads % index_heads:
        message = f"{index_heads} does not divide num_attention_heads {heads}"
        raise config.error("index_n_heads", message)
    dim = config.integer("index_head_dim", least=2, most=1024)
    head_dim = config.integer("head_dim")
    share = config.fields("rope_parameters").number("partial_rotary_factor", 1.0)
    if dim % 2 or dim < int(head_dim * share):
        message = f"expected an even number, no less than the {int(head_dim * share)} rotary ones"
        raise config.error("index_head_dim", message)
    sizes = [
        config.integer(f"index_{key}") for key in ("block_size", "topk_blocks", "local_blocks")
    ]
    block, topk, local = sizes
    method = f"msa(block={block}, topk={topk}, local={local})"
    return IndexConfig(layers, num_layers, index_heads, dim, method)


def read_minimax_features(config: Fields, num_layers: int) -> Features:
    """Norms around zero, a clamped SwiGLU, and experts."""
    sparse = _layers(config, "mlp_layer_types", num_layers, "sparse", "dense")
    count = config.integer("num_local_experts", most=1 << 16)
    return Features(
        norm_offset=1.0,
        swiglu=SwiGLU(
            config.number("swiglu_alpha", above=0.0), config.number("swiglu_limit", above=0.0)
        ),
        dense_inner=config.integer("dense_intermediate_size"),
        experts=Experts(
            layers=sparse,
            count=count,
            per_token=config.integer("num_experts_per_tok", most=count),
            inner=config.integer("intermediate_size"),
            shared_inner=config.integer("shared_intermediate_size"),
            scale=config.number("routed_scaling_factor", above=0.0),
        ),
    )


def _layers(config: Fields, key: str, num_layers: int, wanted: str, other: str) -> frozenset[int]:
    kinds = config.values.get(key)
    if not isinstance(kinds, list) or len(kinds) != num_layers:
        raise config.error(key, f"expected a list of {num_layers} entries, one per layer")
    for kind in kinds:
        if kind not in (wanted, other):
            raise config.error(key, f"{kind!r:.80} is not supported; supported: {wanted}, {other}")
    return frozenset(i for i, kind in enumerate(kinds) if kind == wanted)
