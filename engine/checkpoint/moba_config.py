"""MoBA's keys in config.json: Moonshot's two, which FLA shares, and what an engine needs besides.

moba_chunk_size, moba_topk: tokens of a block, and blocks of a row, its own among them unless
moba_topk_includes_current is false. moba_layers: their indices, by default all layers without a
sliding window. moba_decode: "dense" (the default, as in the published evaluations and in FLA) or
"sparse", for generated tokens. moba_nope: these layers have no rotary embedding. moba_kconv_width:
their keys are convolved over so many tokens (FlashMoBA, arXiv 2511.11571), as projected and normed,
before any rotary embedding; the weights are `self_attn.k_conv.weight` [channels, 1, width], in the
order of torch's Conv1d: the last column is for the token itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from .features import Features, Gate
from .json_object import Fields

_KEYS = (
    "moba_chunk_size moba_topk moba_layers moba_decode moba_topk_includes_current moba_nope "
    "moba_kconv_width"
).split()
_MOST_TAPS = 16


@dataclass(frozen=True)
class MobaKeys:
    """What the keys say: the layers, their method by phase, and how their keys are made."""

    layers: tuple[int, ...]
    specs: Mapping[str, str]
    nope: bool
    taps: int  # 0: keys are not convolved

    def added_to(self, features: Features) -> Features:
        """The features of the model with those of its MoBA layers."""
        layers = frozenset(self.layers)
        if self.nope:
            features = replace(features, unrotated=features.unrotated | layers)
        if self.taps:
            features = replace(features, key_taps=self.taps, convolved=layers)
        return features


def read_moba(
    config: Fields, windows: Sequence[int | None], chunk: int | None = None, topk: int | None = None
) -> MobaKeys | None:
    """The keys of a model with these windows by layer; None where it has none of them.

    chunk, topk: the family's defaults. CheckpointError for a key that is unknown or does not fit.
    """
    given = [key for key in config.values if key.startswith("moba_")]
    for key in given:
        if key not in _KEYS:
            raise config.error(key, f"unknown; the keys are {', '.join(_KEYS)}")
    if chunk is None and not any(config.has(key) for key in given):
        return None
    layers = _layers(config, windows)
    method = _method(config, chunk, topk)
    sparse = config.choice("moba_decode", ["dense", "sparse"], "dense") == "sparse"
    spec = _spec(method, layers, len(windows))
    return MobaKeys(
        layers,
        {"prefill_attention": spec, "decode_attention": spec if sparse else "dense"},
        nope=config.boolean("moba_nope", False),
        taps=config.integer("moba_kconv_width", 0, least=0, most=_MOST_TAPS),
    )


def _layers(config: Fields, windows: Sequence[int | None]) -> tuple[int, ...]:
    if not config.has("moba_layers"):
        return tuple(i for i, window in enumerate(windows) if window is None)
    layers = config.values["moba_layers"]
    if not isinstance(layers, list) or len(set(map(repr, layers))) < len(layers):
        message = f"expected a list of different layers, found {layers!r:.80}"
        raise config.error("moba_layers", message)
    for layer in layers:
        if type(layer) is not int or not 0 <= layer < len(windows):
            message = f"expected layers from 0 to {len(windows) - 1}, found {layer!r:.80}"
            raise config.error("moba_layers", message)
        if windows[layer] is not None:
            raise config.error("moba_layers", f"layer {layer} has a sliding window")
    return tuple(sorted(layers))


def _method(config: Fields, chunk: int | None, topk: int | None) -> str:
    block = config.integer("moba_chunk_size", chunk, least=16)
    if block & (block - 1):
        raise config.error("moba_chunk_size", f"expected a power of two, found {block}")
    counted = config.boolean("moba_topk_includes_current", True)
    # Public code turns to dense attention for a row's own block alone; we do not guess which.
    blocks = config.integer("moba_topk", topk, least=1 + counted, most=256)
    return f"moba({block}, {blocks}, {int(counted)})"


def _spec(method: str, layers: Sequence[int], num_layers: int) -> str:
    """The spec that gives these layers the method, all others dense attention."""
    if len(layers) == num_layers:
        return method
    return "; ".join([*(f"{layer}:{method}" for layer in layers), "*:dense"])


def read_fla_moba(config: Fields, num_layers: int) -> Features:
    """The layers of flash-linear-attention's "moba": a norm on every head's output, and a gate."""
    for key in ("window_size", "attnres_block_size"):
        if config.has(key):
            raise config.error(key, f"{config.values[key]!r:.80} is not supported; only null is")
    return Features(
        gate=Gate(True, "low_rank") if config.boolean("use_output_gate", True) else None,
        output_norm_eps=1e-6,
        qk_norm=config.boolean("qk_norm", False),
        qk_norm_eps=1e-5,
    )
