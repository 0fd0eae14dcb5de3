"""What each supported architecture fixes, and what its config.json may choose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .json_object import Fields
from .latent_config import read_latent
from .variant import Variant


@dataclass(frozen=True)
class Family:
    """One architecture. A bias is a truth value where the family fixes it, else the key for it."""

    architecture: str
    model_type: str
    qkv_bias: bool | str = False
    output_bias: bool | str = False
    mlp_bias: bool | str = False
    qk_norm: bool = False
    default_head_dim: int | None = None  # None: hidden_size / num_attention_heads
    # Where sliding_window holds when there are no layer_types: "nowhere" (refused), "always" (every
    # layer), "switch" (where use_sliding_window and max_window_layers say so).
    window: str = "nowhere"
    # Reads what the family has beyond the Llama shape, from the config and its number of layers.
    variant: Callable[[Fields, int], Variant] | None = None


_ALL = (
    Family(
        "LlamaForCausalLM",
        "llama",
        qkv_bias="attention_bias",
        output_bias="attention_bias",
        mlp_bias="mlp_bias",
    ),
    Family("MistralForCausalLM", "mistral", window="always"),
    Family("Qwen2ForCausalLM", "qwen2", qkv_bias=True, window="switch"),
    Family(
        "Qwen3ForCausalLM",
        "qwen3",
        qkv_bias="attention_bias",
        output_bias="attention_bias",
        qk_norm=True,
        default_head_dim=128,
        window="switch",
    ),
    Family("AsaForCausalLM", "asa", variant=read_latent),
)

# Settings of other architectures, which would change the mathematics if they said anything.
_FOREIGN = (
    "quantization_config compression_config num_experts num_local_experts n_routed_experts "
    "attn_logit_softcapping final_logit_softcapping logit_scale logits_scaling clip_qkv "
    "residual_multiplier embedding_multiplier attention_multiplier query_pre_attn_scalar "
    "no_rope_layers rope_interleaved qk_layernorm use_qk_norm attention_chunk_size kv_lora_rank "
    "num_nextn_predict_layers use_mrope"
).split()


def read_family(config: Fields) -> Family:
    """The family that `architectures` names; CheckpointError when unknown or contradicted."""
    named = config.values.get("architectures")
    supported = ", ".join(family.architecture for family in _ALL)
    if not isinstance(named, list) or len(named) != 1:
        message = f"expected a list of one of {supported}, found {named!r:.80}"
        raise config.error("architectures", message)
    for family in _ALL:
        if family.architecture == named[0]:
            _refuse_contradictions(config, family)
            return family
    message = f"{named[0]!r:.80} is not supported; supported: {supported}"
    raise config.error("architectures", message)


def bias(config: Fields, setting: bool | str) -> bool:
    """Whether a projection of the family has a bias."""
    return config.boolean(setting, False) if isinstance(setting, str) else setting


def layer_windows(config: Fields, family: Family, num_layers: int) -> tuple[int | None, ...]:
    """Each layer's sliding window in tokens, the current one included; None: it sees everything."""
    window = _declared_window(config, family)
    kinds = config.values.get("layer_types")
    if kinds is None:
        kinds = _implied_kinds(config, family, window, num_layers)
    if not isinstance(kinds, list) or len(kinds) != num_layers:
        raise config.error("layer_types", f"expected a list of {num_layers} entries, one per layer")
    for kind in kinds:
        if kind not in ("full_attention", "sliding_attention"):
            message = f"{kind!r:.80} is not supported; supported: full_attention, sliding_attention"
            raise config.error("layer_types", message)
    if window is None and "sliding_attention" in kinds:
        raise config.error("layer_types", "sliding_attention, but no sliding_window is in force")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _declared_window(config: Fields, family: Family) -> int | None:
    switch = config.boolean("use_sliding_window", family.window != "switch")
    if not switch and family.window != "always":
        return None
    if family.window == "switch" and not config.has("sliding_window"):
        raise config.error("sliding_window", "missing, although use_sliding_window is true")
    if family.window == "always" and "sliding_window" not in config.values:
        raise config.error("sliding_window", "missing; full attention is written as null")
    return config.integer("sliding_window") if config.has("sliding_window") else None


def _implied_kinds(
    config: Fields, family: Family, window: int | None, num_layers: int
) -> list[str]:
    if window is None:
        return ["full_attention"] * num_layers
    if family.window == "nowhere":
        message = f"a {family.architecture} needs layer_types to say where it holds"
        raise config.error("sliding_window", message)
    full = 0
    if family.window == "switch":  # the first max_window_layers layers see everything
        full = min(config.integer("max_window_layers", least=0), num_layers)
    return ["full_attention"] * full + ["sliding_attention"] * (num_layers - full)


def _refuse_contradictions(config: Fields, family: Family) -> None:
    if config.values.get("model_type", family.model_type) != family.model_type:
        raise config.error("model_type", f"contradicts the architecture {family.architecture}")
    for key in _FOREIGN:
        if not _says_nothing(config.values.get(key)):
            raise config.error(key, f"is not part of {family.architecture} as Saccade supports it")
    for key, setting in (("attention_bias", family.qkv_bias), ("mlp_bias", family.mlp_bias)):
        if not isinstance(setting, str) and config.boolean(key, setting) != setting:
            raise config.error(key, f"{config.values[key]!r} contradicts {family.architecture}")
    code = config.fields("auto_map").values
    if "AutoModel" in code or "AutoModelForCausalLM" in code:
        raise config.error("auto_map", "the checkpoint's own model code is never executed")


def _says_nothing(value: object) -> bool:
    return value in (None, False, 0, [], {}) or (isinstance(value, float) and value == 1.0)
