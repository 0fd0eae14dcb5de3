"""Qwen4-Exp's keys in config.json, as transformers 5.23 writes them.

layer_types: "indexed_attention" (in some files "full_attention") per layer. indexer_n_heads,
indexer_head_dim: of an indexer, with indexer_kv_heads = 1 key per token. indexer_compress_ratio:
tokens of a block; indexer_budget: tokens of the blocks that a row reads. hc_count, hc_lowrank:
residual streams. num_experts, num_experts_per_tok, moe_intermediate_size,
shared_expert_intermediate_size, norm_topk_prob: of the feed-forward layers.
"""

from __future__ import annotations

from dataclasses import dataclass

from .features import Experts, Features, Gate, HyperConnections
from .json_object import Fields

_INDEXED = ("indexed_attention", "full_attention")


@dataclass(frozen=True)
class QsaConfig:
    """Layers with an indexer that scores blocks of keys."""

    num_layers: int
    index_heads: int
    index_dim: int
    block: int  # tokens of a block
    listed: int  # blocks that a row reads

    @property
    def heads(self) -> None:
        """As the ordinary keys say."""
        return None

    @property
    def rope_dim(self) -> None:
        """As the ordinary keys say."""
        return None

    @property
    def windows(self) -> tuple[None, ...]:
        """Every layer sees everything."""
        return (None,) * self.num_layers

    @property
    def specs(self) -> dict[str, str]:
        """The method of every layer."""
        return {"attention": f"qsa(block={self.block}, topk={self.listed})"}


def read_qwen4(config: Fields, num_layers: int) -> QsaConfig:
    """CheckpointError for a key that is missing or does not fit the others."""
    _check_layers(config, num_layers)
    config.integer("indexer_kv_heads", most=1)
    dim = config.integer("indexer_head_dim", least=2, most=1024)
    rope = config.fields("rope_parameters")
    share = rope.number("partial_rotary_factor", config.number("partial_rotary_factor", 0.25))
    rotary = int(config.integer("head_dim", 256) * share)
    if dim % 2 or dim < rotary:
        message = f"expected an even number, no less than the {rotary} rotary ones"
        raise config.error("indexer_head_dim", message)
    block = config.integer("indexer_compress_ratio", least=4)
    budget = config.integer("indexer_budget")
    if budget % block:
        raise config.error("indexer_budget", f"expected a multiple of {block}, found {budget}")
    heads = config.integer("indexer_n_heads", most=1 << 16)
    return QsaConfig(num_layers, heads, dim, block, budget // block)


def read_qwen4_features(config: Fields, num_layers: int) -> Features:
    """Gated attention, norms around zero, residual streams, and experts in every layer."""
    count = config.integer("num_experts", most=1 << 16)
    return Features(
        gate=Gate(True, "head"),
        norm_offset=1.0,
        hyper=HyperConnections(
            config.integer("hc_count", 4, least=2, most=256), config.integer("hc_lowrank", 320)
        ),
        experts=Experts(
            layers=frozenset(range(num_layers)),
            count=count,
            per_token=config.integer("num_experts_per_tok", most=count),
            inner=config.integer("moe_intermediate_size"),
            shared_inner=config.integer("shared_expert_intermediate_size"),
            router="softmax",
            normalised=config.boolean("norm_topk_prob", True),
        ),
    )


def _check_layers(config: Fields, num_layers: int) -> None:
    kinds = config.values.get("layer_types")
    if kinds is None or (isinstance(kinds, list) and "linear_attention" in kinds):
        message = "layers of Gated DeltaNet (linear_attention) are not supported"
        raise config.error("layer_types", message if kinds else f"missing: {message}")
    if not isinstance(kinds, list) or len(kinds) != num_layers:
        message = f"expected a list of {num_layers} entries, one per layer"
        raise config.error("layer_types", message)
    for kind in kinds:
        if kind not in _INDEXED:
            message = f"{kind!r:.80} is not supported; supported: {', '.join(_INDEXED)}"
            raise config.error("layer_types", message)
    if config.values.get("ple_layer_ids"):
        raise config.error("ple_layer_ids", "per-layer n-gram embeddings are not supported")
