"""Attention layers by what a checkpoint's config says of them. A new kind is registered here."""

from __future__ import annotations

from typing import Protocol

import torch

from ..attention.base import LayerShape
from ..checkpoint.config_json import ModelConfig
from ..checkpoint.index_config import IndexConfig
from ..checkpoint.latent_config import LatentConfig
from ..checkpoint.mosa_config import MosaConfig
from ..checkpoint.nsa_config import NsaConfig
from ..checkpoint.qsa_config import QsaConfig
from .attention import Attention, AttentionContext
from .deltanet import DeltaNetLayer
from .indexed_attention import IndexedAttention
from .latent_attention import LatentAttention
from .mosa_attention import MosaAttention
from .nsa_attention import NsaAttention
from .qsa_attention import QsaAttention
from .weights import Weights


class AttentionLayer(Protocol):
    """One layer, built of its weights."""

    shape: LayerShape

    def __call__(self, x: torch.Tensor, step: AttentionContext) -> torch.Tensor:
        """x: [T, hidden], normed -> [T, hidden], to be added to the residual stream."""
        ...


class AttentionKind(Protocol):
    """A class of attention layers: what is known of one before any weight is loaded."""

    def __call__(self, config: ModelConfig, layer: int, weights: Weights) -> AttentionLayer:
        """Takes and packs the layer's weights."""
        ...

    def shape_of(self, config: ModelConfig, layer: int) -> LayerShape:
        """The attention geometry of one layer."""
        ...

    def tensors(self, config: ModelConfig, layer: int) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every tensor, without the prefix `model.layers.<layer>.` and
        `layer_part`.
        """
        ...

    def spare_elements(self, config: ModelConfig) -> int:
        """Elements of all layers' weights that are kept a second time, in another form."""
        ...

    def scratch_bytes(self, config: ModelConfig, dtype: torch.dtype, tokens: int, seqs: int) -> int:
        """What a layer allocates in a step beyond q, k, v, the output and its fp32 partials."""
        ...


_KINDS: dict[type, AttentionKind] = {
    IndexConfig: IndexedAttention,
    LatentConfig: LatentAttention,
    MosaConfig: MosaAttention,
    NsaConfig: NsaAttention,
    QsaConfig: QsaAttention,
}


class Hybrid:
    """Layers of Gated DeltaNet among attention layers of one kind."""

    def __init__(self, attention: AttentionKind, recurrent: frozenset[int]) -> None:
        self._attention = attention
        self._recurrent = recurrent

    def _of(self, layer: int) -> AttentionKind:
        return DeltaNetLayer if layer in self._recurrent else self._attention

    def __call__(self, config: ModelConfig, layer: int, weights: Weights) -> AttentionLayer:
        """Takes and packs the layer's weights."""
        return self._of(layer)(config, layer, weights)

    def shape_of(self, config: ModelConfig, layer: int) -> LayerShape:
        """The geometry of one layer."""
        return self._of(layer).shape_of(config, layer)

    def tensors(self, config: ModelConfig, layer: int) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every tensor, without the prefix."""
        return self._of(layer).tensors(config, layer)

    def spare_elements(self, config: ModelConfig) -> int:
        """As the attention layers."""
        return self._attention.spare_elements(config)

    def scratch_bytes(self, config: ModelConfig, dtype: torch.dtype, tokens: int, seqs: int) -> int:
        """The more of the two."""
        kinds: tuple[AttentionKind, ...] = (self._attention, DeltaNetLayer)
        return max(kind.scratch_bytes(config, dtype, tokens, seqs) for kind in kinds)


def attention_kind(config: ModelConfig) -> AttentionKind:
    """The class of this model's attention layers, and of those in their place."""
    kind = _KINDS.get(type(config.variant), Attention)
    sizes = config.features.deltanet
    return kind if sizes is None else Hybrid(kind, sizes.layers)


def layer_part(config: ModelConfig, layer: int) -> str:
    """What tensors call the part of a layer that `attention_kind` makes."""
    sizes = config.features.deltanet
    return "linear_attn." if sizes is not None and layer in sizes.layers else "self_attn."


def layer_shapes(config: ModelConfig) -> list[LayerShape]:
    """The attention geometry of every layer, known before any weight is loaded."""
    kind = attention_kind(config)
    return [kind.shape_of(config, layer) for layer in range(config.num_layers)]
