"""What a layer of native sparse attention gives to its method beside q, k and v."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

PHIS = ("mean", "weighted", "linear", "mlp")
ROPES = ("post", "block")
SETS = ("shared", "separate")


@dataclass(frozen=True)
class BranchShape:
    """A layer that computes three gates per head: of compressed entries, of selected blocks and of
    a window, in this order.

    phi: how it makes an entry of a window of tokens (the mean takes no weights). rope: whether of
    keys with their rotary embedding ("post"), or without, to be turned to the window's first token
    ("block"). kv: whether all branches share K and V, or have their own: then a page holds those of
    the branches one behind the other.
    """

    phi: str = "mean"
    rope: str = "post"
    kv: str = "shared"

    @property
    def sets(self) -> int:
        """Sets of K and V that a page holds."""
        return 3 if self.kv == "separate" else 1

    @property
    def computes(self) -> bool:
        """Whether entries are more than means of what pages hold."""
        return (self.phi, self.rope) != ("mean", "post")


class Turns(Protocol):
    """Rotary angles of any positions."""

    def cos_sin(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """float32 [T, r/2] each."""
        ...


class Compressor(Protocol):
    """A layer's own way to make entries of windows of tokens."""

    def __call__(
        self, k: torch.Tensor, v: torch.Tensor, first: torch.Tensor, turns: Turns | None
    ) -> torch.Tensor:
        """[n, Hkv, d + dv] of keys [n, length, Hkv, d] and values [n, length, Hkv, dv] as pages
        hold them; first: int64 [n], the position of each window's first token. An entry's bits
        depend on its window alone.
        """
        ...
