"""The weights of a layer's experts."""

from __future__ import annotations

from dataclasses import dataclass

from ..linear import PackedHeads


@dataclass(frozen=True)
class ExpertWeights:
    """E gated feed-forward layers of one shape: a head of `PackedHeads` is an expert.

    gate_up: [E, 2 n, hidden], the n gates before the n values; down: [E, hidden, n]; swiglu:
    (alpha, limit) of the clamped activation, see `kernels.activation`; None: silu.
    """

    gate_up: PackedHeads
    down: PackedHeads
    swiglu: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        """ValueError when the two do not fit together."""
        shapes = [(len(x), x.out_features, x.in_features) for x in (self.gate_up, self.down)]
        (count, double, hidden), down = shapes
        if double % 2 or down != (count, hidden, double // 2):
            raise ValueError(
                f"experts need gate_up [E, 2 n, hidden] and down [E, hidden, n], got {shapes}"
            )
        if self.swiglu is not None and not self.swiglu[1] > 0:
            raise ValueError(f"experts: the activation's limit {self.swiglu[1]} must be positive")

    def __len__(self) -> int:
        return len(self.gate_up)

    @property
    def hidden(self) -> int:
        """Channels of a row."""
        return self.gate_up.in_features

    @property
    def inner(self) -> int:
        """Channels between the two products."""
        return self.down.in_features
