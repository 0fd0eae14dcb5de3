"""What a recurrent layer keeps instead of keys and values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RecurrentShape:
    """A layer whose past is a state of fixed size: per head a matrix [key_dim, value_dim] in fp32,
    and the last inputs of its convolutions: tails, (name, inputs, channels) of each.
    """

    heads: int
    key_dim: int
    value_dim: int
    tails: tuple[tuple[str, int, int], ...]
