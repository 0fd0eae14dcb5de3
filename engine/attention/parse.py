"""The grammar of attention specs. Importing it does not import torch.

A spec is `method(option=value, ...)`, or per layer `0-1:dense; *:window(size=1024)`; later entries
do not override earlier ones: a layer takes the first entry that names it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from .spec import MethodInfo, describe_methods, find_method, info_of, method_class

if TYPE_CHECKING:
    from .base import AttentionMethod


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
    info = find_method(match[1]) if match else None
    if match is None or info is None:
        names = ", ".join(each.name for each in describe_methods())
        raise ValueError(
            f"attention method {text.strip()!r} is unknown; "
            f"write name(option=value, ...) with one of {names}"
        )
    options = _options(info, match[2] or "")
    method: AttentionMethod = method_class(info)(**options)
    return method


def method_text(method: AttentionMethod) -> str:
    """A method as the shortest spec that means it: options at their defaults are left out."""
    info = info_of(method)
    bases = {"": info.defaults} | {
        f"preset={word}": info.defaults | _written(options) for word, options in info.presets
    }
    texts = [
        [preset] * bool(preset)
        + [f"{k}={getattr(method, k)}" for k, v in base.items() if str(getattr(method, k)) != v]
        for preset, base in bases.items()
    ]
    options = min(texts, key=len)
    return f"{info.name}({', '.join(options)})" if options else info.name


def _written(options: str) -> dict[str, str]:
    """The options of a preset, as they are written."""
    return dict(each.strip().split("=") for each in options.split(",") if each.strip())


def _options(info: MethodInfo, text: str) -> dict[str, int | float | str]:
    defaults, found = info.defaults, dict[str, int | float | str]()
    allowed, base = list(defaults), dict[str, int | float | str]()
    for index, part in enumerate(filter(None, (piece.strip() for piece in text.split(",")))):
        key, equals, value = (each.strip() for each in part.partition("="))
        if not equals:
            key, value = (allowed[index] if index < len(allowed) else "?"), part
        if key in found or (key == "preset" and base):
            raise ValueError(f"attention: {info.name} is given {key} twice")
        if key == "preset" and info.presets:
            base = _preset(info, value)
            continue
        if key not in allowed:
            options = ", ".join([*["preset"] * bool(info.presets), *allowed]) or "none"
            raise ValueError(
                f"attention: {info.name} has no option for {part!r}; its options are: {options}"
            )
        found[key] = _value(f"attention: {info.name}({key}=...)", defaults[key], value)
    return base | found


def _preset(info: MethodInfo, word: str) -> dict[str, int | float | str]:
    """The options that a preset stands for, defaults among them."""
    presets = dict(info.presets)
    if word not in presets:
        raise ValueError(
            f"attention: {info.name} has no preset {word!r}; its presets are: {', '.join(presets)}"
        )
    written = info.defaults | _written(presets[word])
    return {key: _value(key, info.defaults[key], value) for key, value in written.items()}


def _value(option: str, default: str, text: str) -> int | float | str:
    """The option's value, of its default's kind; which words are right its method knows."""
    kinds: tuple[tuple[str, str, Callable[[str], int | float | str]], ...] = (
        (r"\d{1,9}", "a whole number", int),
        (r"\d{1,9}(?:\.\d{1,9})?", "a number like 0.25", float),
        (r"\w*", "a word", str),
    )
    pattern, kind, convert = next(each for each in kinds if re.fullmatch(each[0], default))
    if not re.fullmatch(pattern, text):
        if convert is int and re.fullmatch(r"\d+", text):
            kind += " of at most 9 digits"
        raise ValueError(f"{option} must be {kind}, not {text!r}")
    return convert(text)
