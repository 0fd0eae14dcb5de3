"""The Llama shape: every supported family, told apart by its configuration alone."""

from __future__ import annotations

import torch

from ...kernels.linear import linear, pack
from ..attention.base import LayerShape
from ..checkpoint.config_json import ModelConfig
from ..layers.attention import AttentionContext
from ..layers.kinds import attention_kind
from ..layers.mlp import feed_forward
from ..layers.norm import Norm
from ..layers.rope import RotaryEmbedding
from ..layers.weights import Weights
from .tensors import EMBEDDING, FINAL_NORM


class LlamaModel:
    """Embedding, then decoder layers around one residual stream, then the output projection."""

    def __init__(self, config: ModelConfig, weights: Weights, max_model_len: int) -> None:
        """Takes and packs the weights of a verified checkpoint, one projection at a time."""
        self.config = config
        self.dtype = weights.dtype
        self.embedding = weights.tensor(EMBEDDING)
        self.layers = [DecoderLayer(config, i, weights) for i in range(config.num_layers)]
        self.norm = _norm(config, weights, FINAL_NORM)
        tied = config.tied_embeddings
        self.lm_head = pack(self.embedding) if tied else weights.projection("lm_head")
        self.rope = RotaryEmbedding(config.rope, config.rope_dim, max_model_len)

    def forward(self, step: AttentionContext) -> torch.Tensor:
        """The final hidden states [T, hidden] of the step's T rows."""
        residual = _scaled(
            self.embedding.index_select(0, step.tokens), self.config.features.embedding_scale
        )
        update: torch.Tensor | None = None
        for layer in self.layers:
            update = layer.forward(update, residual, step)
        return _add_and_norm(update, residual, self.norm)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 [R, vocab_size] for chosen rows [R, hidden] of what `forward` returned."""
        logits = linear(hidden, self.lm_head, torch.float32)
        divisor = self.config.features.logits_divisor
        return logits if divisor == 1.0 else logits.div_(divisor)

    @property
    def layer_shapes(self) -> list[LayerShape]:
        """The attention geometry of every layer."""
        return [layer.attention.shape for layer in self.layers]


class DecoderLayer:
    """Attention, then the feed-forward layer, each on the normed residual stream."""

    def __init__(self, config: ModelConfig, index: int, weights: Weights) -> None:
        name = f"model.layers.{index}."
        self.scale = config.features.residual_scale
        self.attention_norm = _norm(config, weights, name + "input_layernorm.weight")
        self.attention = attention_kind(config)(config, index, weights)
        self.mlp_norm = _norm(config, weights, name + "post_attention_layernorm.weight")
        self.mlp = feed_forward(config, index, weights)

    def forward(
        self, update: torch.Tensor | None, residual: torch.Tensor, step: AttentionContext
    ) -> torch.Tensor:
        """Adds `update`, the contribution of the layer before, to `residual` in place.

        Returns this layer's own contribution: each addition is left to the norm after it, which
        fuses the two.
        """
        x = _add_and_norm(update, residual, self.attention_norm)
        update = _scaled(self.attention(x, step), self.scale)
        x = _add_and_norm(update, residual, self.mlp_norm)
        return _scaled(self.mlp(x), self.scale)


def _norm(config: ModelConfig, weights: Weights, name: str) -> Norm:
    return Norm(weights.tensor(name), config.rms_norm_eps, config.features.norm_offset)


def _add_and_norm(update: torch.Tensor | None, residual: torch.Tensor, norm: Norm) -> torch.Tensor:
    return norm(residual) if update is None else norm(update, residual)


def _scaled(x: torch.Tensor, scale: float) -> torch.Tensor:
    """x times a number that most models leave at 1; in place."""
    return x if scale == 1.0 else x.mul_(scale)
