"""Qwen4-Exp's keys in config.json, as transformers 5.23 writes them.

layer_types: "indexed_attention" (in some files "full_attention") or "linear_attention" per layer
(`deltanet_config.py`). indexer_n_heads, indexer_head_dim: of an indexer, with indexer_kv_heads = 1
key per token. indexer_compress_ratio: tokens of a block; indexer_budget: tokens of the blocks that
a row reads. hc_count, hc_lowrank: residual streams. num_experts, num_experts_per_tok,
moe_intermediate_size, shared_expert_intermediate_size, norm_topk_prob: of the feed-forward layers.
"""

from __future__ import annotations

from dataclasses import dataclass

from .deltanet_config import read_deltanet, read_layer_kinds
from .family_features import read_softmax_experts
from .features import Features, Gate, HyperConnections
from .json_object import Fields
from .ngram_config import read_ngrams
from .variant import OrdinaryHeads

_INDEXED = ("indexed_attention", "full_attention")


@dataclass(frozen=True)
class QsaConfig(OrdinaryHeads):
    """Layers with an indexer that scores blocks of keys."""

    num_layers: int
    index_heads: int
    index_dim: int
    block: int  # tokens of a block
    listed: int  # blocks that a row reads

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
    recurrent = read_layer_kinds(config, num_layers, _INDEXED)
    gate = config.choice("output_gate_type", ("silu", "sigmoid"), "silu")
    deltanet = read_deltanet(config, recurrent, gate)
    return Features(
        gate=Gate(True, "head"),
        norm_offset=1.0,
        deltanet=deltanet,
        ngrams=read_ngrams(config, deltanet.layers if deltanet else frozenset()),
        hyper=HyperConnections(
            config.integer("hc_count", 4, least=2, most=256), config.integer("hc_lowrank", 320)
        ),
        experts=read_softmax_experts(config, frozenset(range(num_layers))),
    )
