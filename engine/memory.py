"""The memory plan: how many pages every layer group gets, worked out before anything is allocated.

A full-attention token costs one slot in every full group, so these all get the same number of
pages; a window group needs no more than its windows and chunks can hold at a time, and a group of
kept tokens no more than its heads may keep of so much context. Whatever is left of the budget goes
to the full groups. Pure arithmetic, but for `available_memory`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import CapacityError
from .kept_rule import KeptRule
from .pages import pages_for, window_pages

# Without kv_cache_memory: this share of what weights and scratch leave of the available memory, and
# no more than all sequences at full length can use. The rest is for other programs and page tables.
DEFAULT_KV_SHARE = 0.6
# Of a GPU's memory, which no other program is expected to want; the rest is for what allocators
# lose between their pieces, and for graphs.
GPU_KV_SHARE = 0.9

# A limit like cgroup v1's "none", a little below 2**63.
_NO_LIMIT = 2**60


@dataclass(frozen=True, slots=True)
class GroupPages:
    """A layer group: bytes of one page (K, V and page fields of all its layers), and what it
    keeps: the last `window` tokens and the first `sinks`; None: all, or what `kept` says.
    """

    bytes_per_page: int
    window: int | None = None
    sinks: int = 0
    kept: KeptRule | None = None

    @property
    def label(self) -> str:
        """What it keeps, in words."""
        if self.kept is not None:
            return "kept per head"
        if self.window is None:
            return "all context"
        return f"window of {self.window}" + (f", {self.sinks} sinks" if self.sinks else "")


@dataclass(frozen=True, slots=True)
class MemoryRequest:
    """What the plan has to serve. Sizes in bytes, lengths in tokens.

    kv_cache_memory None: kv_share of what is left. length_is_explicit: the user asked for
    this max_model_len, so that it is refused and not reduced when it does not fit.
    """

    groups: Sequence[GroupPages]
    page_size: int
    weights_bytes: int
    scratch_bytes: int
    available_bytes: int
    kv_cache_memory: int | None
    max_model_len: int
    length_is_explicit: bool
    max_num_seqs: int
    max_num_batched_tokens: int
    kv_share: float = DEFAULT_KV_SHARE


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Pages per layer group, the longest sequence they hold, and where all bytes go."""

    request: MemoryRequest
    pages: tuple[int, ...]
    max_model_len: int
    num_tokens: int  # tokens of context that fit at a time, over all sequences
    notes: tuple[str, ...]

    @property
    def group_bytes(self) -> tuple[int, ...]:
        """Bytes of every group's pages."""
        return tuple(
            n * g.bytes_per_page for n, g in zip(self.pages, self.request.groups, strict=True)
        )

    @property
    def total_bytes(self) -> int:
        """Weights, scratch and pages."""
        return self.request.weights_bytes + self.request.scratch_bytes + sum(self.group_bytes)

    def render(self) -> list[str]:
        """The plan as lines of plain text, without a trailing newline."""
        rows = [("weights", self.request.weights_bytes, "")]
        rows.append(("scratch arena", self.request.scratch_bytes, ""))
        for group, count, size in zip(
            self.request.groups, self.pages, self.group_bytes, strict=True
        ):
            detail = f"{count} pages of {self.request.page_size} tokens"
            rows.append((f"KV pages, {group.label}", size, detail))
        rows.append(("total", self.total_bytes, f"of {show_bytes(self.request.available_bytes)}"))
        lines = [
            f"  {name:<32} {show_bytes(size):>10}  {text}".rstrip() for name, size, text in rows
        ]
        if windows := _windows_that_fit(self.request, self.pages):
            seqs = min(windows, self.request.max_num_seqs)
            fit = "1 sequence fits, of" if seqs == 1 else f"{seqs} sequences fit, each of"
            lines.append(f"  {fit} up to {self.max_model_len} tokens.")
        else:
            lines.append(
                f"  {self.num_tokens} tokens of context fit; one sequence may have "
                f"{self.max_model_len} of them."
            )
        return ["Memory plan", *lines, *(f"  Note: {note}" for note in self.notes)]


def plan_memory(request: MemoryRequest) -> MemoryPlan:
    """Divides the KV budget among the layer groups.

    Raises CapacityError, with the numbers, when not even one sequence of max_model_len fits, or,
    if that length was not asked for explicitly, not even one page.
    """
    budget = _kv_budget(request)
    demand = request.max_num_seqs * pages_for(request.max_model_len, request.page_size)
    has_full = any(group.window is None and group.kept is None for group in request.groups)
    # Beyond the demand, pages only serve the prefix cache: worth it if the user gave the memory.
    limit = demand if request.kv_cache_memory is None or not has_full else budget
    if _cost(request, budget + 1) <= budget:  # pages that hold nothing: heads keep it all
        limit = demand
    length = _most(request, budget, limit)
    notes: tuple[str, ...] = ()
    max_model_len = min(request.max_model_len, length * request.page_size)
    if length > 0 and _windows_that_fit(request, _pages(request, length)):
        max_model_len = request.max_model_len
    if max_model_len < request.max_model_len:
        _refuse_if_must(request, budget, length)
        notes = (
            f"max_model_len is reduced from {request.max_model_len} to {max_model_len} tokens, "
            f"which is what fits in {show_bytes(budget)} of KV pages.",
        )
    pages = _pages(request, length)
    return MemoryPlan(request, pages, max_model_len, length * request.page_size, notes)


def _kv_budget(request: MemoryRequest) -> int:
    fixed = request.weights_bytes + request.scratch_bytes
    left = request.available_bytes - fixed
    wanted = request.kv_cache_memory
    if left <= 0 or (wanted is not None and wanted > left):
        pages = "" if wanted is None else f" and kv_cache_memory {show_bytes(wanted)}"
        raise CapacityError(
            f"Weights and rotary angles up to max_model_len={request.max_model_len} need "
            f"{show_bytes(request.weights_bytes)}, the scratch arena "
            f"{show_bytes(request.scratch_bytes)}{pages}, together "
            f"{show_bytes(fixed + (wanted or 0))}, but {show_bytes(request.available_bytes)} of "
            f"memory are available."
        )
    return int(left * request.kv_share) if wanted is None else wanted


def _pages(request: MemoryRequest, length: int) -> tuple[int, ...]:
    """Pages per group when `length` pages' worth of context shall fit."""
    return tuple(min(length, _most_pages(request, group, length)) for group in request.groups)


def _most_pages(request: MemoryRequest, group: GroupPages, length: int) -> int:
    seqs, size = request.max_num_seqs, request.page_size
    if group.kept is not None:
        return group.kept.pages_of_all(length * size, seqs, size)
    if group.window is None:
        return length
    return seqs * window_pages(group.window, request.max_num_batched_tokens, size, group.sinks)


def _windows_that_fit(request: MemoryRequest, pages: Sequence[int]) -> int:
    """How many sequences of any length fit; 0 where some layer keeps all context."""
    chunk, size = request.max_num_batched_tokens, request.page_size
    return min(
        0 if group.window is None else count // window_pages(group.window, chunk, size, group.sinks)
        for group, count in zip(request.groups, pages, strict=True)
    )


def _cost(request: MemoryRequest, length: int) -> int:
    pages = _pages(request, length)
    return sum(n * g.bytes_per_page for n, g in zip(pages, request.groups, strict=True))


def _most(request: MemoryRequest, budget: int, limit: int) -> int:
    """The longest context in pages, up to `limit`, that fits the budget: by bisection."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        if _cost(request, middle) <= budget:
            low = middle
        else:
            high = middle - 1
    return low


def _refuse_if_must(request: MemoryRequest, budget: int, length: int) -> None:
    if length > 0 and not request.length_is_explicit:
        return
    wanted = request.max_model_len if request.length_is_explicit else request.page_size
    needed = _cost(request, pages_for(wanted, request.page_size))
    raise CapacityError(
        f"One sequence of {wanted} tokens needs {show_bytes(needed)} of KV pages, but there are "
        f"{show_bytes(budget)}, enough for {length * request.page_size} tokens. Lower "
        f"max_model_len or raise kv_cache_memory."
    )


def available_memory(root: Path = Path("/")) -> int:
    """Bytes that this process may still take: the system's, or less under a cgroup limit.

    `root` is where `proc` and `sys` lie (for tests). Memory which the kernel would give back from
    its file cache counts as available.
    """
    lines = _lines(root / "proc/meminfo")
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    system = found or [os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    groups = [line.split(":", 2) for line in _lines(root / "proc/self/cgroup")]
    rooms = [system[0]]
    for _, controllers, path in groups:
        if controllers == "":
            files = ("memory.max", "memory.current", "inactive_file ")
            rooms += _rooms(root / "sys/fs/cgroup", path, *files)
        elif "memory" in controllers.split(","):
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file ")
            rooms += _rooms(root / "sys/fs/cgroup/memory", path, *files)
    return max(0, min(rooms))


def _rooms(base: Path, path: str, limit_file: str, usage_file: str, cache_key: str) -> list[int]:
    """What each cgroup from `path` up to the root still allows; unlimited ones are left out."""
    folder, rooms = base / path.strip("/"), []
    for level in (folder, *folder.parents):
        limit, usage = (_lines(level / name) for name in (limit_file, usage_file))
        if limit and usage and limit[0].isdigit() and int(limit[0]) < _NO_LIMIT:
            stat = _lines(level / "memory.stat")
            cache = sum(int(line.split()[1]) for line in stat if line.startswith(cache_key))
            rooms.append(int(limit[0]) - int(usage[0]) + cache)
        if level == base:
            break
    return rooms


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def show_bytes(count: int) -> str:
    """1536 -> "1.5 KiB"."""
    value, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:.0f} B" if units[0] == "B" else f"{value:.1f} {units[0]}"
