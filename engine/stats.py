"""What the scheduler counts, for metrics and for people who wonder where the memory went."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class SchedulerStats:
    """A snapshot. Page counts are per layer group; all else counts from the scheduler's start."""

    running: int
    waiting: int
    total_pages: tuple[int, ...]
    free_pages: tuple[int, ...]  # no contents worth keeping
    idle_pages: tuple[int, ...]  # cached and held by nobody: available like free ones
    cached_pages: tuple[int, ...]  # what a prefix lookup can find, held or idle
    evictions: int
    lookup_tokens: int  # tokens of admitted requests, again after each preemption
    hit_tokens: int  # those of them that the prefix cache had
    misses: Mapping[str, int]  # prefix.Miss -> admissions whose hit ended for that reason
    preemptions: int
    forks: int
    copies: int  # pages copied on write
    finished: Mapping[str, int]  # finish reason -> requests

    @property
    def used_pages(self) -> tuple[int, ...]:
        """Pages held by requests."""
        pools = zip(self.total_pages, self.free_pages, self.idle_pages, strict=True)
        return tuple(total - free - idle for total, free, idle in pools)


@dataclass
class ReadCounts:
    """What rows read of the keys they could see, summed over rows and layers, mean over heads.

    rows: rows of the model, not of its layers. keys_visible: what dense attention would have read,
    in a layer's own sliding window if it has one. dense_fallbacks: how often a layer read more in a
    step than its method's bound allows.
    """

    rows: int = 0
    keys_read: float = 0.0
    keys_visible: float = 0.0
    blocks_selected: float = 0.0
    dense_fallbacks: int = 0

    @property
    def share(self) -> float | None:
        """Keys read of those visible; above 1 where a method reads keys twice; None before any."""
        return self.keys_read / self.keys_visible if self.keys_visible else None

    def add(self, other: ReadCounts) -> None:
        """Takes in what other rows read."""
        self.rows += other.rows
        self.keys_read += other.keys_read
        self.keys_visible += other.keys_visible
        self.blocks_selected += other.blocks_selected
        self.dense_fallbacks += other.dense_fallbacks

    def as_dict(self) -> dict[str, float | int | None]:
        """Plain values, `share` among them."""
        return {
            "rows": self.rows,
            "share": self.share,
            "keys_read": self.keys_read,
            "keys_visible": self.keys_visible,
            "blocks_selected": self.blocks_selected,
            "dense_fallbacks": self.dense_fallbacks,
        }


@dataclass
class AttentionReads:
    """ReadCounts of prompt tokens and of generated ones."""

    prefill: ReadCounts = field(default_factory=ReadCounts)
    decode: ReadCounts = field(default_factory=ReadCounts)

    def add(self, counts: ReadCounts, decodes: bool) -> None:
        """Takes in what a run of rows read."""
        (self.decode if decodes else self.prefill).add(counts)

    def as_dict(self) -> dict[str, dict[str, float | int | None]]:
        """Phase -> plain values."""
        return {"prefill": self.prefill.as_dict(), "decode": self.decode.as_dict()}
