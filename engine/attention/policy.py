"""AttentionPolicy: how every layer attends, for prompt tokens and for generated ones."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import lcm

from .base import AttentionMethod, LayerShape
from .experts import WholeTextMethod
from .parse import method_text, parse_layers, parse_method
from .protocols import MeasuredMethod, PhasedMethod, PromptEndMethod, PromptModeMethod
from .spec import describe_methods, info_of


@dataclass(frozen=True)
class AttentionPolicy:
    """A method per layer for prompt tokens and one for generated tokens.

    Equal methods are one object: what a step plans it plans once for layers with the same objects.
    """

    prefill: tuple[AttentionMethod, ...]
    decode: tuple[AttentionMethod, ...]

    def __post_init__(self) -> None:
        known: dict[AttentionMethod, AttentionMethod] = {}
        for phase in ("prefill", "decode"):
            methods = getattr(self, phase)
            object.__setattr__(self, phase, tuple(known.setdefault(m, m) for m in methods))

    def measured(self, shapes: Sequence[LayerShape]) -> AttentionPolicy:
        """The same, methods that go by measured figures named by those of their layers.

        Raises ValueError for a layer without the figures that its method needs.
        """
        return AttentionPolicy(
            *(
                tuple(
                    method.measured(shape) if isinstance(method, MeasuredMethod) else method
                    for method, shape in zip(methods, shapes, strict=True)
                )
                for methods in (self.prefill, self.decode)
            )
        )

    @cached_property
    def name(self) -> str:
        """Canonical text of both. Spelling and defaults of the specs make no difference."""
        layers = zip(self.prefill, self.decode, strict=True)
        return "; ".join(f"{a}" if a == b else f"{a} then {b}" for a, b in layers)

    @cached_property
    def text(self) -> str:
        """The same for people: as specs, options at their defaults left out."""
        layers = zip(self.prefill, self.decode, strict=True)
        texts = [
            method_text(a) if a == b else f"{method_text(a)} then {method_text(b)}"
            for a, b in layers
        ]
        parts = []
        for text, group in itertools.groupby(range(len(texts)), texts.__getitem__):
            first, *others = group
            parts.append(f"{first}-{others[-1]}: {text}" if others else f"{first}: {text}")
        return "; ".join(parts) if len(parts) > 1 else texts[0]

    @cached_property
    def align(self) -> int:
        """Prefill chunks begin on multiples of this: every layer's alignment divides it."""
        return lcm(*(method.align for method in {*self.prefill, *self.decode}))

    def tail(self, prompt_len: int) -> int | None:
        """The first position whose K and V depend on where a prompt of this length ends.

        None: none does, since generated tokens attend as prompt tokens do.
        """
        if not self.differs:
            return None
        return min([prompt_len, *(method.tail(prompt_len) for method in self._aware_of_the_end)])

    @cached_property
    def _aware_of_the_end(self) -> list[PromptEndMethod]:
        return [method for method in {*self.prefill} if isinstance(method, PromptEndMethod)]

    def key(self, prompt_len: int) -> str:
        """Part of every prefix-cache key, because K and V computed under one policy are not those
        of another: its name, and how its methods read a whole prompt of this length.
        """
        return " ".join([self.name, *(m.prompt_mode(prompt_len) for m in self._with_modes)])

    @cached_property
    def _with_modes(self) -> list[PromptModeMethod]:
        methods = dict.fromkeys(self.prefill)
        return [method for method in methods if isinstance(method, PromptModeMethod)]

    @cached_property
    def needs_whole_text(self) -> bool:
        """Whether a text must be read in one step and cannot be continued."""
        methods = {*self.prefill, *self.decode}
        return any(isinstance(each, WholeTextMethod) and each.needs_whole_text for each in methods)

    @cached_property
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
    return AttentionPolicy(
        _phase("prefill", prefill, attention, num_layers),
        _phase("decode", decode, attention, num_layers),
    )


def _phase(
    phase: str, own: str | None, both: str | None, num_layers: int
) -> tuple[AttentionMethod, ...]:
    """The methods of one phase, by its own spec or else by that of both phases."""
    spec = own if own is not None else both
    methods = parse_layers("dense" if spec is None else spec, num_layers)
    serving = [info.name for info in describe_methods() if phase in info.phases]
    unfit = [info_of(each).name for each in methods if info_of(each).name not in serving]
    if own is not None and unfit:
        raise ValueError(
            f"{phase}_attention: {unfit[0]} does not serve this phase; "
            f"use one of {', '.join(serving)}"
        )
    dense = parse_method("dense")
    return tuple(
        _in_phase(each, phase) if info_of(each).name in serving else dense for each in methods
    )


def _in_phase(method: AttentionMethod, phase: str) -> AttentionMethod:
    if not isinstance(method, PhasedMethod):
        return method
    return method.for_prefill() if phase == "prefill" else method.for_decode()
