"""Models with several residual streams, joined by hyper-connections; else as `llama.py`."""

from __future__ import annotations

import torch

from ...kernels.linear import pack
from ..attention.base import LayerShape
from ..checkpoint.config_json import ModelConfig
from ..layers.attention import AttentionContext
from ..layers.hyper_connection import HyperConnection, hyper_of
from ..layers.kinds import attention_kind
from ..layers.mlp import feed_forward
from ..layers.ngram import NgramLayer, ngrams_of
from ..layers.rope import RotaryEmbedding
from ..layers.weights import Weights
from .llama import LlamaModel
from .tensors import ATTENTION_MIX, EMBEDDING, FINAL_MIX, MLP_MIX


class HyperModel(LlamaModel):
    """The embedding in every stream, decoder layers, the streams' mean, the output projection."""

    def __init__(self, config: ModelConfig, weights: Weights, max_model_len: int) -> None:
        """Takes and packs the weights of a verified checkpoint, one projection at a time."""
        self.config = config
        self.dtype = weights.dtype
        self.embedding = weights.tensor(EMBEDDING)
        self.streams = hyper_of(config).streams
        self.blocks = [HyperLayer(config, i, weights) for i in range(config.num_layers)]
        self.mix = HyperConnection(config, FINAL_MIX, weights, injects=False)
        tied = config.tied_embeddings
        self.lm_head = pack(self.embedding) if tied else weights.projection("lm_head")
        self.rope = RotaryEmbedding(config.rope, config.rope_dim, max_model_len)

    def forward(self, step: AttentionContext) -> torch.Tensor:
        """The final hidden states [T, hidden] of the step's T rows."""
        streams = self.embedding.index_select(0, step.tokens).repeat(1, self.streams)
        for block in self.blocks:
            block.forward(streams, step)
        return self.mix.read(streams)[0]

    @property
    def layer_shapes(self) -> list[LayerShape]:
        """The attention geometry of every layer."""
        return [block.attention.shape for block in self.blocks]


class HyperLayer:
    """Attention, then the feed-forward layer, each between two hyper-connections."""

    def __init__(self, config: ModelConfig, index: int, weights: Weights) -> None:
        name = f"model.layers.{index}."
        has_table = ngrams_of(config, index) is not None
        self.ngrams = NgramLayer(config, index, weights) if has_table else None
        self.attention_mix = HyperConnection(config, name + ATTENTION_MIX, weights)
        self.attention = attention_kind(config)(config, index, weights)
        self.mlp_mix = HyperConnection(config, name + MLP_MIX, weights)
        self.mlp = feed_forward(config, index, weights)

    def forward(self, streams: torch.Tensor, step: AttentionContext) -> None:
        """Adds what the layer computes to `streams` [T, streams * hidden] in place."""
        if self.ngrams is not None:
            self.ngrams.add(streams, step)
        x, shares = self.attention_mix.read(streams)
        self.attention_mix.add(streams, self.attention(x, step), shares)
        x, shares = self.mlp_mix.read(streams)
        self.mlp_mix.add(streams, self.mlp(x), shares)
