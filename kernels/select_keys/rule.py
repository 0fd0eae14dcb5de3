"""How a list of blocks is made of the scores of all keys."""

from __future__ import annotations

from dataclasses import dataclass

UNIONS = ("per_head", "rank_major", "mean_prob")


@dataclass(frozen=True)
class KeyRule:
    """`listed` blocks: always the first `first` and the latest `recent`; between them by `union`:

    per_head    every query head has a list: the blocks that hold its highest scores
    rank_major  one list: each head's best block, then each head's second, until there are enough
    mean_prob   one list: the blocks that hold the keys of the highest probability, summed over
                the query heads
    """

    listed: int
    first: int = 0
    recent: int = 0
    union: str = "rank_major"

    def __post_init__(self) -> None:
        if self.union not in UNIONS:
            raise ValueError(f"{self}: union must be one of {', '.join(UNIONS)}")
        if self.first < 0 or self.recent < 0:
            raise ValueError(f"{self}: first and recent must not be negative")
        if not max(1, self.first + self.recent) <= self.listed <= 256:
            raise ValueError(f"{self}: listed must be at least first + recent, and in 1..256")

    def owners(self, heads: int) -> int:
        """Lists of a row."""
        return heads if self.union == "per_head" else 1
