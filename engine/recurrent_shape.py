"""What a recurrent layer keeps instead of keys and values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tail:
    """The last inputs of one convolution of `taps` taps, `dilation` tokens from tap to tap."""

    name: str
    taps: int
    channels: int
    dilation: int = 1

    @property
    def reach(self) -> int:
        """Tokens before a row that the row depends on: so many inputs are kept."""
        return (self.taps - 1) * self.dilation


@dataclass(frozen=True)
class RecurrentShape:
    """A layer whose past is a state of fixed size: per head a matrix [key_dim, value_dim] in fp32,
    and the last inputs of its convolutions.

    looks_back: tokens of the text before each row that the layer asks for.
    """

    heads: int
    key_dim: int
    value_dim: int
    tails: tuple[Tail, ...]
    looks_back: int = 0
