"""The sliding window of every layer, in all the ways in which a config.json may say it."""

from __future__ import annotations

from .family import Family
from .json_object import Fields


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
