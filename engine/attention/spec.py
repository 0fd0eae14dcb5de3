"""Attention specs: the one place that knows every method's name. Importing it does not import
torch.

A spec is `method(option=value, ...)`, or per layer `0-1:dense; *:window(size=1024)`; later entries
do not override earlier ones: a layer takes the first entry that names it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import lcm
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
    MethodInfo(
        "delta",
        (
            "window=2048",
            "sinks=64",
            "gamma=64",
            "mode=lse",
            "base=window",
            "anchor_guard=0.0",
            "block=512",
            "topk=8",
        ),
        ("prefill",),
        "none; base=moba: as moba; anchor_guard: 4 (d_v + 2) H / gamma bytes",
        "Willette et al. 2025, arXiv 2505.11254",
        _CPU,
    ),
    MethodInfo(
        "quest",
        ("budget=2048", "block=64", "reduction=max"),
        ("decode",),
        "1/block of K and V",
        "Tang et al. 2024, arXiv 2406.10774",
        _CPU,
    ),
    MethodInfo(
        "lessismore",
        (
            "budget=2048",
            "block=16",
            "start=2",
            "correction=12",
            "sinks=4",
            "recent=0.25",
            "union=rank_major",
        ),
        ("decode",),
        "none",
        "Yang et al. 2025, arXiv 2508.07101",
        _CPU,
    ),
    MethodInfo(
        "tidal",
        ("budget=2048", "block=16", "start=2", "correction=12"),
        ("decode",),
        "none",
        "Yang et al. 2024, arXiv 2410.05076",
        _CPU,
    ),
    MethodInfo(
        "asa",
        ("block=16", "topk=16", "init=1", "local=2", "reuse=1", "form=absorbed"),
        _BOTH,
        "global layers: 1/block of the latents, and 4 topk/reuse bytes per group if reuse > 1",
        "arXiv 2511.00819",
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
        return lcm(*(method.align for method in (*self.prefill, *self.decode)))

    def tail(self, prompt_len: int) -> int:
        """The first position whose K and V depend on where a prompt of this length ends."""
        from .base import PromptEndMethod

        aware = [method for method in self.prefill if isinstance(method, PromptEndMethod)]
        return min([prompt_len, *(method.tail(prompt_len) for method in aware)])

    @property
    def differs(self) -> bool:
        """Whether generated tokens attend by another method than prompt tokens."""
        return self.prefill != self.decode


def parse_policy(
    attention: str | None, prefill: str | None, decode: str | None, num_layers: int
) -> AttentionPolicy:
    """The policy of these specs; `prefill` and `decode` override `attention`, which defaults to
    dense.

    A method of one phase that `attention` names leaves the other phase dense. Raises ValueError
    that names the bad part and what would be right.
    """
    before = _phase("prefill", prefill, attention, num_layers)
    after = _phase("decode", decode, attention, num_layers)
    # Named by what the specs mean, so that spelling and defaults make no difference to the prefix
    # cache.
    name = "; ".join(
        f"{a}" if a == b else f"{a} then {b}" for a, b in zip(before, after, strict=True)
    )
    return AttentionPolicy(before, after, name)


def _phase(
    phase: str, own: str | None, both: str | None, num_layers: int
) -> tuple[AttentionMethod, ...]:
    """The methods of one phase, by its own spec or else by that of both phases."""
    methods, classes = parse_layers(own or both or "dense", num_layers), _classes()
    serving = [info.name for info in _METHODS if phase in info.phases]
    names = {kind: name for name, kind in classes.items()}
    unfit = [names[type(each)] for each in methods if names[type(each)] not in serving]
    if own and unfit:
        raise ValueError(
            f"{phase}_attention: {unfit[0]} does not serve this phase; "
            f"use one of {', '.join(serving)}"
        )
    dense: AttentionMethod = classes["dense"]()
    return tuple(each if names[type(each)] in serving else dense for each in methods)


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
    parameters = next(info.parameters for info in _METHODS if info.name == name)
    options = _options(name, match[2] or "", dict(each.split("=") for each in parameters))
    method: AttentionMethod = classes[name](**options)
    return method


def _options(name: str, text: str, defaults: Mapping[str, str]) -> dict[str, int | float | str]:
    allowed, found = list(defaults), dict[str, int | float | str]()
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
        found[key] = _value(f"attention: {name}({key}=...)", defaults[key], value)
    return found


def _value(option: str, default: str, text: str) -> int | float | str:
    """The option's value, of its default's kind; which words are right its method knows."""
    kinds: tuple[tuple[str, str, Callable[[str], int | float | str]], ...] = (
        (r"\d{1,9}", "a whole number", int),
        (r"\d{1,9}(?:\.\d{1,9})?", "a number like 0.25", float),
        (r"\w*", "a word", str),
    )
    pattern, kind, convert = next(each for each in kinds if re.fullmatch(each[0], default))
    if not re.fullmatch(pattern, text):
        raise ValueError(f"{option} must be {kind}, not {text!r}")
    return convert(text)


def _classes() -> dict[str, type]:
    from .asa import Asa
    from .chunked import Chunked
    from .delta import Delta
    from .dense import Dense
    from .lessismore import LessIsMore
    from .moba import Moba
    from .quest import Quest
    from .tidal import Tidal
    from .window import Window

    return {
        "dense": Dense,
        "window": Window,
        "chunked": Chunked,
        "moba": Moba,
        "delta": Delta,
        "quest": Quest,
        "lessismore": LessIsMore,
        "tidal": Tidal,
        "asa": Asa,
    }
