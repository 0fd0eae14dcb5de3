"""What each supported architecture fixes, and what its config.json may choose."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .family_features import (
    read_gated_qwen3,
    read_granite_swa,
    read_qwen3_5,
    read_qwen3_next,
    read_smollm3,
)
from .features import Features
from .index_config import read_minimax, read_minimax_features
from .json_object import Fields
from .latent_config import read_latent
from .minicpm_config import read_minicpm, read_minicpm_specs
from .moba_config import read_fla_moba
from .mosa_config import read_mosa
from .nsa_config import (
    read_fla_nsa,
    read_llama_nsa,
    read_llama_nsa_features,
    read_llama_nsa_specs,
    read_native,
    undecided_fla_nsa,
    undecided_llama_nsa,
)
from .qsa_config import read_qwen4, read_qwen4_features
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
    variant: Callable[[Fields, int], Variant | None] | None = None
    features: Callable[[Fields, int], Features] | None = None
    # How its own keys say that it attends, as users name the specs; None: they do not.
    specs: Callable[[Fields], Mapping[str, str] | None] | None = None
    # What they leave open about it, and what would settle it; None: nothing.
    undecided: Callable[[Fields], str | None] | None = None
    own_keys: tuple[str, ...] = ()  # those of _FOREIGN that mean something to it
    rotary_share: float | None = None  # default of partial_rotary_factor; None: the whole head
    rotary_keys: tuple[str, ...] = ()  # rotary settings that say nothing for text
    # Its checkpoints bring model code along (auto_map). It is never executed: what it computes is
    # known here.
    brings_code: bool = False
    tied: bool = False  # what an absent tie_word_embeddings means
    # As many KV heads as query heads where the config does not say: others are refused without.
    all_kv_heads: bool = False
    activation: str = "silu"  # what hidden_act calls it
    hidden_ratio: bool = False  # intermediate_size may be left to hidden_size and this ratio
    moba: tuple[int, int] | None = None  # every layer has it; defaults of chunk size and topk
    # (what most families call a key or a part of a tensor's name, what this one calls it)
    keys: tuple[tuple[str, str], ...] = ()
    tensors: tuple[tuple[str, str], ...] = ()


# The names of flash-linear-attention.
_FLA_KEYS = (
    ("num_attention_heads", "num_heads"),
    ("num_key_value_heads", "num_kv_heads"),
    ("rms_norm_eps", "norm_eps"),
)
_FLA_TENSORS = (
    ("model.embed_tokens.", "model.embeddings."),
    (".input_layernorm.", ".attn_norm."),
    (".self_attn.", ".attn."),
    (".post_attention_layernorm.", ".mlp_norm."),
)

# Where every feed-forward layer has experts.
_EXPERT_KEYS = (("intermediate_size", "moe_intermediate_size"),)

_ALL = (
    Family(
        "LlamaForCausalLM",
        "llama",
        qkv_bias="attention_bias",
        output_bias="attention_bias",
        mlp_bias="mlp_bias",
        all_kv_heads=True,
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
        features=read_gated_qwen3,
        own_keys=("use_qk_norm",),
    ),
    *(
        Family(
            architecture,
            model_type,
            qkv_bias="attention_bias",
            output_bias="attention_bias",
            qk_norm=True,
            default_head_dim=256,
            features=features,
            own_keys=("num_experts",),
            rotary_share=0.25,
            rotary_keys=("mrope_section", "mrope_interleaved"),
            keys=keys,
        )
        for architecture, model_type, features, keys in (
            ("Qwen3NextForCausalLM", "qwen3_next", read_qwen3_next, ()),
            ("Qwen3_5ForCausalLM", "qwen3_5_text", read_qwen3_5, ()),
            ("Qwen3_5MoeForCausalLM", "qwen3_5_moe_text", read_qwen3_5, _EXPERT_KEYS),
        )
    ),
    Family(
        "SmolLM3ForCausalLM",
        "smollm3",
        qkv_bias="attention_bias",
        output_bias="attention_bias",
        mlp_bias="mlp_bias",
        features=read_smollm3,
        own_keys=("no_rope_layers",),
        tied=True,
    ),
    Family(
        "GraniteSWAForCausalLM",
        "granite_swa",
        qkv_bias="attention_bias",
        output_bias="attention_bias",
        mlp_bias="mlp_bias",
        window="always",
        features=read_granite_swa,
        own_keys=(
            "attention_multiplier",
            "embedding_multiplier",
            "residual_multiplier",
            "logits_scaling",
        ),
        tied=True,
    ),
    Family(
        "MoBAForCausalLM",
        "moba",
        qkv_bias="qkv_bias",
        features=read_fla_moba,
        all_kv_heads=True,
        activation="swish",
        hidden_ratio=True,
        moba=(256, 4),
        keys=_FLA_KEYS,
        tensors=_FLA_TENSORS,
    ),
    Family(
        "MiniCPMForCausalLM",
        "minicpm",
        features=read_minicpm,
        specs=read_minicpm_specs,
        brings_code=True,
        tied=True,
    ),
    Family(
        "MiniMaxM3VLForCausalLM",
        "minimax_m3_vl_text",
        qk_norm=True,
        variant=read_minimax,
        features=read_minimax_features,
        own_keys=("num_local_experts",),
        rotary_share=1.0,
    ),
    Family(
        "Qwen4ExpForCausalLM",
        "qwen4_exp_text",
        qkv_bias="attention_bias",
        output_bias="attention_bias",
        qk_norm=True,
        default_head_dim=256,
        variant=read_qwen4,
        features=read_qwen4_features,
        own_keys=("num_experts",),
        rotary_share=0.25,
        rotary_keys=("mrope_section", "mrope_interleaved"),
        keys=_EXPERT_KEYS,
    ),
    Family("AsaForCausalLM", "asa", variant=read_latent),
    Family("MosaForCausalLM", "mosa", variant=read_mosa),
    Family(
        "NSAForCausalLM",
        "nsa",
        qkv_bias="qkv_bias",
        variant=read_fla_nsa,
        undecided=undecided_fla_nsa,
        all_kv_heads=True,
        activation="swish",
        hidden_ratio=True,
        keys=_FLA_KEYS,
        tensors=_FLA_TENSORS,
    ),
    Family(
        "LlamaNSAForCausalLM",
        "llama-nsa",
        qkv_bias="attention_bias",
        output_bias="attention_bias",
        mlp_bias="mlp_bias",
        variant=read_llama_nsa,
        features=read_llama_nsa_features,
        specs=read_llama_nsa_specs,
        undecided=undecided_llama_nsa,
        all_kv_heads=True,
        brings_code=True,
    ),
    Family(
        "NativeSparseForCausalLM",
        "native_sparse",
        qkv_bias="attention_bias",
        output_bias="attention_bias",
        mlp_bias="mlp_bias",
        variant=read_native,
    ),
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


def _refuse_contradictions(config: Fields, family: Family) -> None:
    if config.values.get("model_type", family.model_type) != family.model_type:
        raise config.error("model_type", f"contradicts the architecture {family.architecture}")
    for key in _FOREIGN:
        if key not in family.own_keys and not _says_nothing(config.values.get(key)):
            raise config.error(key, f"is not part of {family.architecture} as Saccade supports it")
    for key, setting in (("attention_bias", family.qkv_bias), ("mlp_bias", family.mlp_bias)):
        if not isinstance(setting, str) and config.boolean(key, setting) != setting:
            raise config.error(key, f"{config.values[key]!r} contradicts {family.architecture}")
    code = config.fields("auto_map").values
    named = "AutoModel" in code or "AutoModelForCausalLM" in code
    if named and not family.brings_code:
        raise config.error("auto_map", "the checkpoint's own model code is never executed")


def _says_nothing(value: object) -> bool:
    return value in (None, False, 0, [], {}) or (isinstance(value, float) and value == 1.0)
