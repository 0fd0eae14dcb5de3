"""The rotary embedding part of config.json, in its newer (`rope_parameters`) and older spelling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .json_object import Fields

ROPE_KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")

_SUPPORTED_KEYS = frozenset(
    "rope_type type rope_theta factor original_max_position_embeddings low_freq_factor "
    "high_freq_factor attention_factor beta_fast beta_slow mscale mscale_all_dim truncate "
    "partial_rotary_factor finetuned short_factor long_factor".split()
)


@dataclass(frozen=True)
class RopeConfig:
    """How positions turn queries and keys; lengths in tokens. `kind` says which fields matter."""

    kind: str  # one of ROPE_KINDS
    theta: float
    original_max_position: int  # the length the unscaled frequencies were trained for
    factor: float = 1.0
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    truncate: bool = True  # yarn: whole dimensions at the borders of the ramp
    attention_scaling: float = 1.0  # yarn, longrope: on cos and sin; scores grow by its square
    short_factors: tuple[float, ...] = ()  # longrope: a divisor per pair, up to the original length
    long_factors: tuple[float, ...] = ()  # longrope: and beyond it
    share: float = 1.0  # of a head's channels that turn, the first ones


def read_rope(
    config: Fields,
    max_position: int,
    share: float | None = None,
    extra_keys: Sequence[str] = (),
) -> RopeConfig:
    """The rotary settings of config.json; CheckpointError for unsupported or contradictory ones.

    share: the family's default of partial_rotary_factor; None: it always turns the whole head.
    extra_keys: settings that the family's configs carry and that change nothing here.
    """
    rope = _rope_fields(config)
    for key in rope.values:
        if key not in _SUPPORTED_KEYS and key not in extra_keys:
            supported = ", ".join(sorted(_SUPPORTED_KEYS))
            raise rope.error(key, f"unknown rotary setting; supported: {supported}")
    part = _share(rope, config, share)
    theta = rope.number("rope_theta", config.number("rope_theta", 10000.0, above=1.0), above=1.0)
    if rope.has("rope_theta") and config.has("rope_theta") and theta != config.number("rope_theta"):
        raise config.error("rope_theta", f"contradicts {rope.where}: rope_theta")
    kind = _kind(rope)
    original = max_position
    if kind in ("llama3", "yarn", "longrope"):
        inner = rope.integer("original_max_position_embeddings", max_position)
        original = config.integer("original_max_position_embeddings", inner)
    scaling = _scaling(rope, kind, original, max_position)
    return RopeConfig(kind, theta, original, **scaling, share=part)


def _share(rope: Fields, config: Fields, default: float | None) -> float:
    found = 1.0 if default is None else default
    given = [fields for fields in (rope, config) if fields.has("partial_rotary_factor")]
    for fields in given:
        value = fields.number("partial_rotary_factor", above=0.0)
        if value > 1.0 or (default is None and value != 1.0):
            allowed = "only 1.0 (the whole head) is supported" if default is None else "above 1"
            raise fields.error("partial_rotary_factor", allowed)
        if fields is not given[0] and value != found:
            raise fields.error("partial_rotary_factor", f"contradicts {rope.where}")
        found = value
    return found


def _rope_fields(config: Fields) -> Fields:
    newer, older = config.fields("rope_parameters"), config.fields("rope_scaling")
    if newer.values and older.values and newer.values != older.values:
        raise config.error("rope_scaling", "contradicts rope_parameters; keep one of them")
    rope = newer if newer.values else older
    for key, value in rope.values.items():
        if isinstance(value, dict):
            raise rope.error(key, "rotary settings per layer type are not supported")
    return rope


def _kind(rope: Fields) -> str:
    kind = rope.choice("rope_type", ROPE_KINDS, rope.choice("type", ROPE_KINDS, "default"))
    if rope.has("type") and rope.has("rope_type") and rope.values["type"] != kind:
        raise rope.error("type", f"contradicts rope_type {kind!r}")
    return kind


def _scaling(rope: Fields, kind: str, original: int, max_position: int) -> dict[str, Any]:
    if kind == "default":
        return {}
    if kind == "longrope":
        return _longrope(rope, original, max_position)
    # A yarn checkpoint may leave the factor to the ratio of its two lengths.
    factor = rope.number("factor", max_position / original if kind == "yarn" else None, above=0.0)
    if kind == "llama3":
        low = rope.number("low_freq_factor", above=0.0)
        high = rope.number("high_freq_factor", above=low)
        return {"factor": factor, "low_freq_factor": low, "high_freq_factor": high}
    if kind == "yarn":
        return {
            "factor": factor,
            "beta_fast": rope.number("beta_fast", 32.0, above=0.0),
            "beta_slow": rope.number("beta_slow", 1.0, above=0.0),
            "truncate": rope.boolean("truncate", True),
            "attention_scaling": _yarn_attention_scaling(rope, factor),
        }
    return {"factor": factor}


def _longrope(rope: Fields, original: int, max_position: int) -> dict[str, Any]:
    factor = rope.number("factor", max_position / original, above=0.0)
    usual = 1.0
    if factor > 1.0 and original > 1:
        usual = math.sqrt(1.0 + math.log(factor) / math.log(original))
    return {
        "factor": factor,
        "attention_scaling": rope.number("attention_factor", usual, above=0.0),
        "short_factors": _factors(rope, "short_factor"),
        "long_factors": _factors(rope, "long_factor"),
    }


def _factors(rope: Fields, key: str) -> tuple[float, ...]:
    listed = rope.values.get(key)
    if not isinstance(listed, list) or not listed:
        raise rope.error(key, f"expected a list of numbers, found {listed!r:.80}")
    for entry in listed:
        if type(entry) not in (int, float) or not 0 < entry < 1e300:
            raise rope.error(key, f"expected numbers above 0, found {entry!r:.80}")
    return tuple(map(float, listed))


def _yarn_attention_scaling(rope: Fields, factor: float) -> float:
    if rope.has("attention_factor"):
        return rope.number("attention_factor", above=0.0)
    # A zero here means "not given", as in the configs that carry these two keys.
    over, under = rope.number("mscale", 0.0), rope.number("mscale_all_dim", 0.0)
    if over and under:
        return _yarn_mscale(factor, over) / _yarn_mscale(factor, under)
    return _yarn_mscale(factor, 1.0)


def _yarn_mscale(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1.0 else 0.1 * weight * math.log(factor) + 1.0
