"""What the config.json of each family says of the features that only some checkpoints have."""

from __future__ import annotations

from .features import Features, Gate
from .json_object import Fields


def read_gated_qwen3(config: Fields, num_layers: int) -> Features:
    """The keys of gated attention (Qiu et al. 2025, arXiv 2505.06708) in a Qwen3 config."""
    per_head = config.boolean("headwise_attn_output_gate", False)
    per_channel = config.boolean("elementwise_attn_output_gate", False)
    if per_head and per_channel:
        message = "contradicts elementwise_attn_output_gate; a checkpoint has one of them"
        raise config.error("headwise_attn_output_gate", message)
    return Features(
        gate=Gate(per_channel, "group") if per_head or per_channel else None,
        qk_norm=config.boolean("use_qk_norm", True),
        bias=config.boolean("qkv_bias", False) if config.has("qkv_bias") else None,
    )


def read_qwen3_next(config: Fields, num_layers: int) -> Features:
    """Full-attention layers of Qwen3-Next and Qwen3.5: gated, with norm weights around zero."""
    kinds = config.values.get("layer_types")
    if kinds is None or (isinstance(kinds, list) and "linear_attention" in kinds):
        message = "layers of Gated DeltaNet (linear_attention) are not supported"
        raise config.error("layer_types", message if kinds else f"missing: {message}")
    if config.integer("num_experts", 0, least=0):
        raise config.error("num_experts", "feed-forward layers of experts are not supported")
    if not config.boolean("attn_output_gate", True):
        raise config.error("attn_output_gate", "false is not supported: these layers have a gate")
    return Features(gate=Gate(True, "head"), norm_offset=1.0)


def read_smollm3(config: Fields, num_layers: int) -> Features:
    """The layers without rotary embedding: listed with a 0, or else every so many."""
    if config.has("no_rope_layers"):
        listed = config.values["no_rope_layers"]
        if not isinstance(listed, list) or len(listed) < num_layers:
            message = f"expected a list of {num_layers} entries, 1 or 0, one per layer"
            raise config.error("no_rope_layers", message)
        for entry in listed:
            if type(entry) is not int or entry not in (0, 1):
                message = f"expected 1 (rotary embedding) or 0 (none), found {entry!r:.80}"
                raise config.error("no_rope_layers", message)
        return Features(unrotated=frozenset(i for i in range(num_layers) if not listed[i]))
    every = config.integer("no_rope_layer_interval", 4)
    return Features(unrotated=frozenset(range(every - 1, num_layers, every)))


def read_granite_swa(config: Fields, num_layers: int) -> Features:
    """Sink logits, multipliers, and layers whose rotary base is 0: without rotary embedding."""
    if not config.has("layer_types"):
        raise config.error("layer_types", "missing: which layers have a sliding window")
    thetas = _thetas(config, num_layers)
    turned = {theta for theta in thetas if theta}
    if len(turned) > 1:
        raise config.error("layer_rope_theta", "several bases in one model are not supported")
    return Features(
        sinks=True,
        unrotated=frozenset(i for i, theta in enumerate(thetas) if not theta),
        rope_theta=turned.pop() if turned else None,
        scale=config.number("attention_multiplier", 1.0, above=0.0),
        embedding_scale=config.number("embedding_multiplier", 1.0, above=0.0),
        residual_scale=config.number("residual_multiplier", 1.0, above=0.0),
        logits_divisor=config.number("logits_scaling", 1.0, above=0.0),
    )


def _thetas(config: Fields, num_layers: int) -> list[float]:
    """The rotary base of each layer, as far as the config lists them; 0: none."""
    listed = config.values.get("layer_rope_theta")
    if listed is None:
        return []
    if not isinstance(listed, list) or len(listed) != num_layers:
        message = f"expected a list of {num_layers} entries, one per layer"
        raise config.error("layer_rope_theta", message)
    for entry in listed:
        if type(entry) not in (int, float) or not (entry == 0 or 1 < entry < 1e300):
            message = f"expected 0 or a finite number above 1, found {entry!r:.80}"
            raise config.error("layer_rope_theta", message)
    return [float(entry) for entry in listed]
