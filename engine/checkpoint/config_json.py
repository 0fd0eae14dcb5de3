"""config.json as one frozen, checked value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .calibration import Gammas, read_figures, read_gammas, with_calibration
from .family import Family, bias, read_family
from .features import Features
from .files import read_small
from .json_object import Fields, parse_object
from .layer_windows import layer_windows
from .moba_config import MobaKeys, read_moba
from .rope_config import RopeConfig, read_rope
from .variant import Variant

DTYPES = ("float32", "bfloat16", "float16")
_LIMIT = 4 << 20  # bytes; real configs have a few thousand


@dataclass(frozen=True)
class ModelConfig:
    """A checkpoint's architecture. All sizes in elements, lengths in tokens."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position: int
    rms_norm_eps: float
    rope: RopeConfig
    windows: tuple[int | None, ...]  # sliding window of each layer, None: full attention
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    tied_embeddings: bool
    dtype: str | None  # as the checkpoint declares it, one of DTYPES
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    attention: str | Mapping[str, Any] | None  # the method a sparse checkpoint names, unread
    features: Features  # what its layers have beyond the Llama shape
    tensor_names: tuple[tuple[str, str], ...]  # (part of a tensor's name, what the files have)
    variant: Variant | None = None  # what takes another class of attention layers
    gammas: Gammas | None = None  # measured: gains on the first token's weight
    undecided: str | None = None  # what the config leaves open about how to attend; None: nothing

    @property
    def rope_dim(self) -> int:
        """Channels of a head that turn with the position."""
        own = self.variant.rope_dim if self.variant else None
        return own or int(self.head_dim * self.rope.share)


def read_config(folder: Path, calibration: Path | None = None) -> ModelConfig:
    """Reads config.json, and the end tokens of generation_config.json where there is one.

    calibration: measured figures, else those of the folder's calibration.json if there is one.

    CheckpointError, naming file and key, for anything missing, unsupported or contradictory.
    """
    config = _read(folder / "config.json")
    family = read_family(config)
    config = Fields(config.values, config.where, dict(family.keys))
    config.choice("hidden_act", [family.activation], family.activation)
    num_layers = config.integer("num_hidden_layers", most=10_000)
    max_position = config.integer("max_position_embeddings")
    variant = family.variant(config, num_layers) if family.variant else None
    figures = read_figures(folder, calibration)
    variant = with_calibration(variant, figures, calibration)
    own_heads = variant.heads if variant else None
    num_heads, num_kv_heads, head_dim = own_heads or _heads(config, family)
    features = family.features(config, num_layers) if family.features else Features()
    own_windows = variant.windows if variant else None
    if features.deltanet is not None:  # where layer_types says more than windows
        own_windows = (None,) * num_layers
    windows = own_windows or layer_windows(config, family, num_layers)
    moba = _moba(config, family, windows)
    features = moba.added_to(features) if moba else features
    vocab_size = config.integer("vocab_size")
    model = ModelConfig(
        architecture=family.architecture,
        vocab_size=vocab_size,
        hidden_size=config.integer("hidden_size"),
        intermediate_size=_intermediate(config, family),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_position=max_position,
        rms_norm_eps=config.number("rms_norm_eps", above=0.0),
        rope=_rope(config, family, features, max_position),
        windows=windows,
        qkv_bias=_or(features.bias, bias(config, family.qkv_bias)),
        output_bias=_or(features.bias, bias(config, family.output_bias)),
        mlp_bias=bias(config, family.mlp_bias),
        qk_norm=_or(features.qk_norm, family.qk_norm),
        tied_embeddings=config.boolean("tie_word_embeddings", family.tied),
        dtype=_dtype(config),
        eos_token_ids=_eos(folder, config, vocab_size),
        bos_token_id=_bos(config),
        attention=_attention(config, family, _trained(config, family, moba or variant)),
        features=features,
        tensor_names=family.tensors,
        variant=variant,
        gammas=read_gammas(figures, num_layers, num_heads),
        undecided=family.undecided(config) if family.undecided else None,
    )
    _check_rotary(config, model)
    return model


def _check_rotary(config: Fields, model: ModelConfig) -> None:
    if model.rope_dim % 2 or not model.rope_dim:
        message = f"makes {model.rope_dim} rotary channels of {model.head_dim}, not an even number"
        raise config.error("partial_rotary_factor", message)
    for key, factors in (
        ("short_factor", model.rope.short_factors),
        ("long_factor", model.rope.long_factors),
    ):
        if factors and len(factors) != model.rope_dim // 2:
            message = f"expected {model.rope_dim // 2} numbers, one per rotary pair"
            raise config.error(key, message)


def _or(own: bool | None, usual: bool) -> bool:
    return usual if own is None else own


def _rope(config: Fields, family: Family, features: Features, max_position: int) -> RopeConfig:
    rope = read_rope(config, max_position, family.rotary_share, family.rotary_keys)
    return rope if features.rope_theta is None else replace(rope, theta=features.rope_theta)


def _read(path: Path) -> Fields:
    return Fields(parse_object(read_small(path, _LIMIT), str(path)), str(path))


def _moba(config: Fields, family: Family, windows: tuple[int | None, ...]) -> MobaKeys | None:
    if not family.variant:
        return read_moba(config, windows, *(family.moba or ()))
    for key in config.values:
        if key.startswith("moba_"):
            raise config.error(key, f"is not part of {family.architecture}")
    return None


def _intermediate(config: Fields, family: Family) -> int:
    if not family.hidden_ratio or config.has("intermediate_size"):
        return config.integer("intermediate_size")
    ratio = config.number("hidden_ratio", 4.0, above=0.0)
    return -(-int(config.integer("hidden_size") * ratio * 2 / 3) // 256) * 256


def _heads(config: Fields, family: Family) -> tuple[int, int, int]:
    heads = config.integer("num_attention_heads", most=1 << 16)
    default = heads if family.all_kv_heads else None
    kv_heads = config.integer("num_key_value_heads", default, most=1 << 16)
    if heads % kv_heads:
        message = f"{kv_heads} does not divide num_attention_heads {heads}"
        raise config.error("num_key_value_heads", message)
    hidden = config.integer("hidden_size")
    if not config.has("head_dim") and family.default_head_dim is None and hidden % heads:
        raise config.error("num_attention_heads", f"{heads} does not divide hidden_size {hidden}")
    head_dim = config.integer(
        "head_dim", family.default_head_dim or hidden // heads, least=4, most=1024
    )
    if head_dim % 2:
        raise config.error("head_dim", f"rotary embedding needs an even number, found {head_dim}")
    return heads, kv_heads, head_dim


def _dtype(config: Fields) -> str | None:
    found = {
        config.choice(key, [*DTYPES, *(f"torch.{name}" for name in DTYPES)]).removeprefix("torch.")
        for key in ("dtype", "torch_dtype")
        if config.has(key)
    }
    if len(found) > 1:
        raise config.error("torch_dtype", "contradicts dtype")
    return found.pop() if found else None


def _bos(config: Fields) -> int | None:
    return config.integer("bos_token_id", least=0) if config.has("bos_token_id") else None


def _eos(folder: Path, config: Fields, vocab_size: int) -> tuple[int, ...]:
    sources = [config]
    if (folder / "generation_config.json").exists():
        sources.insert(0, _read(folder / "generation_config.json"))
    for source in sources:
        value = source.values.get("eos_token_id")
        if value is not None:
            ids = value if isinstance(value, list) else [value]
            for each in ids:
                if type(each) is not int or not 0 <= each < vocab_size:
                    message = f"{each!r:.80} is not a token below vocab_size {vocab_size}"
                    raise source.error("eos_token_id", message)
            return tuple(dict.fromkeys(ids))
    return ()


def _trained(
    config: Fields, family: Family, said: Variant | MobaKeys | None
) -> Mapping[str, str] | None:
    """How the checkpoint says it was trained to attend."""
    own = family.specs(config) if family.specs else None
    return own or (said.specs if said else None)


def _attention(
    config: Fields, family: Family, own: Mapping[str, str] | None
) -> str | Mapping[str, Any] | None:
    if config.has("saccade") and config.has("attention"):
        raise config.error("attention", "contradicts the entry saccade; keep one of them")
    key = "saccade" if config.has("saccade") else "attention"
    value = config.values.get(key)
    if own is not None:
        if value is not None:
            entries = ("moba_chunk_size", "sparse_config")
            kind = next((each for each in entries if config.has(each)), family.model_type)
            raise config.error(key, f"contradicts the entry {kind}, which says how to attend")
        return own
    if value is None or isinstance(value, (str, dict)):
        return value
    raise config.error(key, f"expected a string or an object, found {value!r:.80}")
