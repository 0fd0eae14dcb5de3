"""Attention specs: the one place that knows every method's name. Importing it does not import
torch.

A spec is `method(option=value, ...)`, or per layer `0-1:dense; *:window(size=1024)`; later entries
do not override earlier ones: a layer takes the first entry that names it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .base import AttentionMethod


@dataclass(frozen=True)
class MethodInfo:
    """A method as `saccade methods` shows it."""

    name: str
    parameters: tuple[str, ...]  # name=default
    phases: tuple[str, ...]
    state: str  # bytes kept per token beyond K and V
    source: str
    backends: tuple[str, ...]


_BOTH = ("prefill", "decode")
_CPU = ("torch reference", "compiled CPU")
_METHODS = (
    MethodInfo("dense", (), _BOTH, "none", "Vaswani et al. 2017, arXiv 1706.03762", _CPU),
    MethodInfo(
        "window",
        ("size=4096", "sinks=4"),
        _BOTH,
        "none",
        "Xiao et al. 2023, arXiv 2309.17453",
        _CPU,
    ),
    MethodInfo(
        "chunked",
        ("q_chunk=1024", "k_chunk=4096"),
        _BOTH,
        "none",
        "Rabe & Staats 2021, arXiv 2112.05682",
        _CPU,
    ),
    MethodInfo(
        "moba",
        ("block=512", "topk=8", "topk_includes_current=1"),
        _BOTH,
        "1/(2 block) of K and V, at least 1/(2 page)",
        "Lu et al. 2025, arXiv 2502.13189",
        _CPU,
    ),
)


def describe_methods() -> list[MethodInfo]:
    """Every attention method, in the order of the README's table."""
    return list(_METHODS)


@dataclass(frozen=True)
class AttentionPolicy:
    """A method per layer for prompt tokens and one for generated tokens.

    name: canonical text of both, part of every prefix-cache key, because K and V computed under one
    policy are not those of another.
    """

    prefill: tuple[AttentionMethod, ...]
    decode: tuple[AttentionMethod, ...]
    name: str

    @property
    def align(self) -> int:
        """Prefill chunks begin on multiples of this: every layer's alignment divides it."""
        return max(method.align for method in (*self.prefill, *self.decode))

    @property
    def differs(self) -> bool:
        """Whether generated tokens attend by another method than prompt tokens."""
        return self.prefill != self.decode


def parse_policy(
    attention: str | None, prefill: str | None, decode: str | None, num_layers: int
) -> AttentionPolicy:
    """The policy of these specs; `prefill` and `decode` override `attention`, which defaults to
    dense.

    Raises ValueError that names the bad part and what would be right.
    """
    first, then = prefill or attention or "dense", decode or attention or "dense"
    before, after = parse_layers(first, num_layers), parse_layers(then, num_layers)
    # Named by what the specs mean, so that spelling and defaults make no difference to the prefix
    # cache.
    name = "; ".join(
        f"{a}" if a == b else f"{a} then {b}" for a, b in zip(before, after, strict=True)
    )
    return AttentionPolicy(before, after, name)


def parse_layers(spec: str, num_layers: int) -> tuple[AttentionMethod, ...]:
    """One method per layer. Raises ValueError for a bad spec or a layer without a method."""
    chosen: list[AttentionMethod | None] = [None] * num_layers
    for entry in filter(None, (part.strip() for part in spec.split(";"))):
        layers, colon, method = entry.partition(":")
        built = parse_method(method if colon else entry)
        for layer in _layers(layers.strip(), num_layers) if colon else range(num_layers):
            chosen[layer] = chosen[layer] or built
    missing = [layer for layer, method in enumerate(chosen) if method is None]
    if missing:
        raise ValueError(
            f"attention {spec!r} names no method for layer {missing[0]}; end it with '*:dense'"
        )
    return tuple(method for method in chosen if method is not None)


def _layers(text: str, num_layers: int) -> range:
    if text == "*":
        return range(num_layers)
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
    if not first <= last < num_layers:
        raise ValueError(
            f"attention: layers {text!r} must be '*', 'i' or 'i-j' with i <= j < {num_layers}"
        )
    return range(first, last + 1)


def parse_method(text: str) -> AttentionMethod:
    """`name`, or `name(option=value, ...)`, options in order may go without their names. ValueError
    when bad.
    """
    match = re.fullmatch(r"\s*(\w+)\s*(?:\(([^()]*)\))?\s*", text)
    classes = _classes()
    if match is None or match[1] not in classes:
        names = ", ".join(classes)
        raise ValueError(
            f"attention method {text.strip()!r} is unknown; "
            f"write name(option=value, ...) with one of {names}"
        )
    name = match[1]
    allowed = next(info.parameters for info in _METHODS if info.name == name)
    options = _options(name, match[2] or "", [each.partition("=")[0] for each in allowed])
    method: AttentionMethod = classes[name](**options)
    return method


def _options(name: str, text: str, allowed: Sequence[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for index, part in enumerate(filter(None, (piece.strip() for piece in text.split(",")))):
        key, equals, value = (each.strip() for each in part.partition("="))
        if not equals:
            key, value = (allowed[index] if index < len(allowed) else "?"), part
        if key not in allowed:
            options = ", ".join(allowed) or "none"
            raise ValueError(
                f"attention: {name} has no option for {part!r}; its options are: {options}"
            )
        if key in found:
            raise ValueError(f"attention: {name} is given {key} twice")
        if not re.fullmatch(r"\d{1,9}", value):
            raise ValueError(f"attention: {name}({key}=...) must be a whole number, not {value!r}")
        found[key] = int(value)
    return found


def _classes() -> dict[str, type]:
    from .chunked import Chunked
    from .dense import Dense
    from .moba import Moba
    from .window import Window

    return {"dense": Dense, "window": Window, "chunked": Chunked, "moba": Moba}
