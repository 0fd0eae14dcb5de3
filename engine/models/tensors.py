"""The tensors that a checkpoint of the Llama shape must contain, and the memory they take."""

from __future__ import annotations

from math import prod

import torch

from ..checkpoint.config_json import ModelConfig
from ..layers.kinds import attention_kind
from ..layers.mlp import mlp_tensors

EMBEDDING, FINAL_NORM, LM_HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"

Shapes = dict[str, tuple[int, ...]]


def expected_tensors(config: ModelConfig) -> Shapes:
    """Name -> shape of every tensor, as the Hugging Face classes name them."""
    hidden = config.hidden_size
    shapes: Shapes = {EMBEDDING: (config.vocab_size, hidden)}
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}."
        shapes[prefix + "input_layernorm.weight"] = (hidden,)
        attention = attention_kind(config).tensors(config, layer)
        shapes |= {f"{prefix}self_attn.{name}": shape for name, shape in attention.items()}
        shapes[prefix + "post_attention_layernorm.weight"] = (hidden,)
        mlp = mlp_tensors(config, layer)
        shapes |= {f"{prefix}mlp.{name}": shape for name, shape in mlp.items()}
    shapes[FINAL_NORM] = (hidden,)
    if not config.tied_embeddings:
        shapes[LM_HEAD] = (config.vocab_size, hidden)
    return shapes


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
