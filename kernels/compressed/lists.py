"""What entries summarise, and how the list of blocks of a row is made up."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ListRule:
    """`listed` blocks: always the first `first` and the latest `recent` (the row's own among them),
    and of the other complete blocks those that weigh most. Positions that are no multiple of
    `every` choose none: their list is empty.
    """

    listed: int
    first: int = 0
    recent: int = 1
    every: int = 1

    def __post_init__(self) -> None:
        if self.first < 0 or self.recent < 1 or self.every < 1:
            raise ValueError(f"{self}: first must not be negative, recent and every positive")
        if not self.first + self.recent <= self.listed <= 256:
            raise ValueError(f"{self}: listed must be at least first + recent and at most 256")


POOLS = ("sum", "max")


@dataclass(frozen=True)
class Spans:
    """Entry i summarises the tokens [i * stride, i * stride + length), and lies in the page of the
    last of them.

    pool: how entries weigh a block that they overlap: "sum", each by the tokens that it shares with
    the block, in strides; or "max", the heaviest.
    """

    length: int
    stride: int
    pool: str = "sum"

    def __post_init__(self) -> None:
        if self.stride < 1 or self.stride & (self.stride - 1) or self.length % self.stride:
            raise ValueError(f"{self}: stride must be a power of two, and length a multiple of it")
        if not 0 < self.length <= 1 << 20 or self.pool not in POOLS:
            raise ValueError(f"{self}: length must be positive, pool one of {', '.join(POOLS)}")

    def slots(self, page_size: int) -> int:
        """Entries that end in a page: at most, where a stride spans several."""
        return max(1, page_size // self.stride)

    def complete(self, tokens: int) -> int:
        """Entries of the first `tokens` tokens."""
        return max(0, (tokens - self.length) // self.stride + 1)
