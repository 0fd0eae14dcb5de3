"""How the list of blocks of a row is made up."""

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
