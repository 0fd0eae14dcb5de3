"""What the config.json of each family says of the features that only some checkpoints have."""

from __future__ import annotations

from .deltanet_config import read_deltanet, read_layer_kinds
from .features import Experts, Features, Gate
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
    """Qwen3-Next: gated attention, norm weights around zero, layers of Gated DeltaNet, experts."""
    return _read_hybrid(config, num_layers, packed=True)


def read_qwen3_5(config: Fields, num_layers: int) -> Features:
    """Qwen3.5: the same, with a projection for each part of a recurrent layer."""
    return _read_hybrid(config, num_layers, packed=False)


def _read_hybrid(config: Fields, num_layers: int, packed: bool) -> Features:
    if not config.boolean("attn_output_gate", True):
        raise config.error("attn_output_gate", "false is not supported: these layers have a gate")
    recurrent = read_layer_kinds(config, num_layers, ("full_attention",))
    return Features(
        gate=Gate(True, "head"),
        norm_offset=1.0,
        deltanet=read_deltanet(config, recurrent, packed=packed),
        experts=_softmax_experts(config, num_layers),
    )


def _softmax_experts(config: Fields, num_layers: int) -> Experts | None:
    """Experts in every decoder_sparse_step-th layer that mlp_only_layers does not list."""
    count = config.integer("num_experts", 0, least=0, most=1 << 16)
    if not count:
        return None
    every = config.integer("decoder_sparse_step", 1)
    without = config.values.get("mlp_only_layers") or []
    if not isinstance(without, list) or any(type(each) is not int for each in without):
        raise config.error("mlp_only_layers", f"expected a list of layers, found {without!r:.80}")
    layers = {layer for layer in range(num_layers) if (layer + 1) % every == 0}
    return read_softmax_experts(config, frozenset(layers.difference(without)))


def read_softmax_experts(config: Fields, layers: frozenset[int]) -> Experts:
    """Experts routed by probabilities, and a shared one behind a gate, in these layers."""
    count = config.integer("num_experts", most=1 << 16)
    return Experts(
        layers=layers,
        count=count,
        per_token=config.integer("num_experts_per_tok", most=count),
        inner=config.integer("moe_intermediate_size"),
        shared_inner=config.integer("shared_expert_intermediate_size"),
        router="softmax",
        normalised=config.boolean("norm_topk_prob", True),
    )


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
