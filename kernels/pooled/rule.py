"""What is weighed, and how the list of blocks of a row is made up of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

WEIGHTS = ("relu", "probability")
MAX_LISTED = 1024


@dataclass(frozen=True)
class Entries:
    """Summaries of windows of keys: entry i is of the `size` tokens from i * stride on, and lies in
    the page of the last of them. data: [pages, slots, owners, d].
    """

    data: torch.Tensor
    size: int
    stride: int


@dataclass(frozen=True)
class PooledRule:
    """`listed` blocks: always the first `first` and the latest `recent` (the row's own among them),
    and of the others those that weigh most. recent=0: the row's own block is taken while it is
    unfinished and competes when it is finished; one place of the list is kept for it.

    weight: "probability", exp(score - lse), or "relu", max(score, 0); summed over the query heads
    of an owner.
    """

    listed: int
    first: int = 0
    recent: int = 1
    weight: str = "probability"

    def __post_init__(self) -> None:
        if self.first < 0 or self.recent < 0:
            raise ValueError(f"{self}: first and recent must not be negative")
        if not self.first + max(self.recent, 1) <= self.listed <= MAX_LISTED:
            raise ValueError(
                f"{self}: listed must be at least first + recent and at most {MAX_LISTED}"
            )
        if self.weight not in WEIGHTS:
            raise ValueError(f"{self}: weight must be one of {', '.join(WEIGHTS)}")
