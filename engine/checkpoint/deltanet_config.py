"""Which layers of Qwen3-Next and its successors are Gated DeltaNet, and their sizes.

layer_types: "linear_attention", else attention; without it, full_attention_interval says which are
attention: every so many. linear_num_key_heads, linear_num_value_heads, linear_key_head_dim,
linear_value_head_dim, linear_conv_kernel_dim: sizes of a recurrent layer.
"""

from __future__ import annotations

from collections.abc import Sequence

from .features import DeltaNet
from .json_object import Fields

LINEAR = "linear_attention"


def read_layer_kinds(config: Fields, num_layers: int, attention: Sequence[str]) -> list[bool]:
    """Whether each layer is recurrent; `attention`: what the config may call the others."""
    kinds = config.values.get("layer_types")
    if kinds is None:
        every = config.integer("full_attention_interval", 4)
        return [(layer + 1) % every != 0 for layer in range(num_layers)]
    if not isinstance(kinds, list) or len(kinds) != num_layers:
        message = f"expected a list of {num_layers} entries, one per layer"
        raise config.error("layer_types", message)
    for kind in kinds:
        if kind not in (LINEAR, *attention):
            message = f"{kind!r:.80} is not supported; supported: {', '.join((LINEAR, *attention))}"
            raise config.error("layer_types", message)
    return [kind == LINEAR for kind in kinds]


def read_deltanet(
    config: Fields, recurrent: Sequence[bool], gate: str = "silu", packed: bool = False
) -> DeltaNet | None:
    """The recurrent layers; None: there are none. CheckpointError for sizes that do not fit."""
    layers = frozenset(layer for layer, each in enumerate(recurrent) if each)
    if not layers:
        return None
    heads = config.integer("linear_num_value_heads", 32, most=1 << 16)
    key_heads = config.integer("linear_num_key_heads", 16, most=1 << 16)
    if heads % key_heads:
        message = f"{key_heads} does not divide linear_num_value_heads {heads}"
        raise config.error("linear_num_key_heads", message)
    return DeltaNet(
        layers,
        key_heads,
        heads,
        key_dim=config.integer("linear_key_head_dim", 128, most=1024),
        value_dim=config.integer("linear_value_head_dim", 128, most=1024),
        taps=config.integer("linear_conv_kernel_dim", 4, most=16),
        gate=gate,
        packed=packed,
    )
