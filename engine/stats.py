"""What the scheduler counts, for metrics and for people who wonder where the memory went."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


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
