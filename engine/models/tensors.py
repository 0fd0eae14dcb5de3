"""The tensors that a checkpoint of the Llama shape must contain, and the memory they take."""

from __future__ import annotations

from math import prod

import torch

from ..checkpoint.config_json import ModelConfig
from ..layers.hyper_connection import HyperConnection
from ..layers.kinds import attention_kind, layer_part
from ..layers.mlp import mlp_tensors
from ..layers.ngram import ngram_tensors

EMBEDDING, FINAL_NORM, LM_HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
# Of models with hyper-connections, in place of norms.
ATTENTION_MIX, MLP_MIX = "attn_hyper_connection.", "mlp_hyper_connection."
FINAL_MIX = "model.hyper_connection_mixer."

Shapes = dict[str, tuple[int, ...]]


def expected_tensors(config: ModelConfig) -> Shapes:
    """Name -> shape of every tensor, as the Hugging Face classes name them."""
    hidden = config.hidden_size
    shapes: Shapes = {EMBEDDING: (config.vocab_size, hidden)}
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}."
        for name, shape in _around(config).items():
            shapes[prefix + name] = shape
        attention = attention_kind(config).tensors(config, layer)
        part = prefix + layer_part(config, layer)
        shapes |= {part + name: shape for name, shape in attention.items()}
        ngrams = ngram_tensors(config, layer)
        shapes |= {f"{prefix}ple.{name}": shape for name, shape in ngrams.items()}
        mlp = mlp_tensors(config, layer)
        shapes |= {f"{prefix}mlp.{name}": shape for name, shape in mlp.items()}
    if config.features.hyper is None:
        shapes[FINAL_NORM] = (hidden,)
    else:
        final = HyperConnection.tensors(config, injects=False)
        shapes |= {FINAL_MIX + name: shape for name, shape in final.items()}
    if not config.tied_embeddings:
        shapes[LM_HEAD] = (config.vocab_size, hidden)
    return shapes


def _around(config: ModelConfig) -> Shapes:
    """What stands before attention and feed-forward of a layer, without the layer's prefix."""
    if config.features.hyper is None:
        names = ("input_layernorm.weight", "post_attention_layernorm.weight")
        return dict.fromkeys(names, (config.hidden_size,))
    own = HyperConnection.tensors(config)
    return {mix + name: shape for mix in (ATTENTION_MIX, MLP_MIX) for name, shape in own.items()}


def model_nbytes(config: ModelConfig, dtype: torch.dtype, max_model_len: int) -> int:
    """Bytes that the loaded model will take: weights and rotary table, known before loading.

    A tied embedding counts twice: looked up as it is, and packed as the output projection.
    Packing adds less than 32 rows per projection, which are not counted.
    """
    elements = sum(prod(shape) for shape in expected_tensors(config).values())
    if config.tied_embeddings:
        elements += config.vocab_size * config.hidden_size
    elements += attention_kind(config).spare_elements(config)
    return elements * dtype.itemsize + max_model_len * config.rope_dim * torch.float32.itemsize
