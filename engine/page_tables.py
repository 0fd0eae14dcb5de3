"""PageTables: the pages of every request, over all layer groups. Only this module writes them.

Pages go back through `release` (everything a request has) or `commit` (what its windows have left
behind), and nowhere else.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from math import lcm

from .errors import CapacityError
from .kept_pages import KeptPool
from .pages import IntegrityError, PagePool, window_pages
from .prefix import Hit, PrefixCache, PrefixHasher
from .request import Request
from .step_plan import LayerGroup, PageCopy, SchedulerLimits


class PageTables:
    """Shares, grows and frees the page tables of requests; owns one pool per layer group.

    max_tokens: what one request may hold, prompt and output, when it has all pools to itself.
    max_chunk: what it may compute in one step then. Raises CapacityError where a pool is too small
    for even one chunk.
    """

    def __init__(
        self,
        limits: SchedulerLimits,
        groups: Sequence[LayerGroup],
        pages_per_group: Sequence[int],
        hasher: PrefixHasher,
        prefix_caching: bool,
    ) -> None:
        self.groups = tuple(groups)
        self.page_size = hasher.page_size
        self.pools = tuple(
            _pool(group, num_pages, self.page_size)
            for group, num_pages in zip(self.groups, pages_per_group, strict=True)
        )
        self.cache = PrefixCache(self.groups, self.pools, hasher, prefix_caching)
        self.num_copies = 0
        self._align, self._fork_align = limits.align, limits.fork_align
        self.max_tokens = self._max_tokens(limits.max_model_len)
        self.max_chunk = self._max_chunk(limits.max_num_batched_tokens)

    def _max_tokens(self, max_model_len: int) -> int:
        """By bisection: page tables grow with the length."""
        full = [
            (group, pool.num_pages)
            for group, pool in zip(self.groups, self.pools, strict=True)
            if group.window is None
        ]

        def too_long(length: int) -> bool:
            return any(group.pages(length, self.page_size) > most for group, most in full)

        return bisect_left(range(1, max_model_len + 1), True, key=too_long)

    def _max_chunk(self, budget: int) -> int:
        chunk = budget
        for group, pool in zip(self.groups, self.pools, strict=True):
            if group.window is None or pool.num_pages * self.page_size >= self.max_tokens:
                continue
            sinks = group.sink_pages(self.page_size)
            chunk = min(chunk, (pool.num_pages - sinks - 1) * self.page_size - group.window)
            if chunk < self._align:
                needed = window_pages(group.window, self._align, self.page_size, group.sinks)
                beside = f" beside {group.sinks} sinks" if group.sinks else ""
                raise CapacityError(
                    f"A layer group with a window of {group.window} tokens{beside} has "
                    f"{pool.num_pages} pages of {self.page_size} tokens; the window and one chunk "
                    f"of {self._align} tokens need {needed} pages."
                )
        return chunk

    @property
    def only_grow(self) -> bool:
        """Whether all that was kept at an earlier token is still there: none was replaced."""
        return all(group.kept is None or group.kept.appends for group in self.groups)

    def fits(self, request: Request, hit: Hit, running: Sequence[Request]) -> bool:
        """Whether the whole of a waiting request fits beside what is running.

        What running requests still need for their known tokens is theirs, and one page each is
        left to them on top, or else the newcomer would be preempted a few tokens later.
        """
        reading = [other for other in running if other.remaining > 1]
        for g, pool in enumerate(self.pools):
            table = hit.tables[g]
            held = [page for page in table if page >= 0]
            need = self._missing(g, request, len(table), len(table) - len(held))
            # Idle pages are no longer there for others; kept tokens that others hold are copied.
            is_kept = self.groups[g].kept is not None
            need += sum(is_kept or pool.references(page) == 0 for page in held)
            for other in reading:
                need += self._missing(g, other, len(other.pages[g]), other.num_dropped[g])
            if need + len(running) > pool.num_available:
                return False
        return True

    def _missing(self, g: int, request: Request, size: int, dropped: int) -> int:
        """Pages group g must still give for a request's known tokens, its table being as told."""
        group = self.groups[g]
        peak = group.pages(request.num_tokens, self.page_size) - dropped
        if group.window is not None:
            most = window_pages(group.window, self.max_chunk, self.page_size, group.sinks)
            peak = min(peak, most)
        return max(0, peak - (size - dropped))

    def admit(self, request: Request, hit: Hit) -> None:
        """Gives a request without pages the pages of a prefix hit."""
        self.cache.count(request, hit)
        self._adopt(request, hit.tables, hit.num_pages * self.page_size)
        if request.num_preemptions == 0:
            request.num_cached = request.num_computed

    def can_fork(self, request: Request, parent: Request) -> bool:
        """Whether the parent still holds all that the request needs for its last prompt token."""
        if not self.only_grow:
            return False  # what the prompt's last token replaced is gone
        start = self._fork_point(request)
        return parent.num_computed >= len(request.prompt) and all(
            self._end_of_drop(group, dropped) <= group.first_needed(start) // self.page_size
            for group, dropped in zip(self.groups, parent.num_dropped, strict=True)
        )

    def _end_of_drop(self, group: LayerGroup, dropped: int) -> int:
        """The first page behind the dropped ones, or 0 where none is."""
        return group.sink_pages(self.page_size) + dropped if dropped else 0

    def fork(self, request: Request, parent: Request) -> None:
        """Shares the parent's pages of the prompt without its last token, even partly full ones."""
        start = self._fork_point(request)
        counts = [group.pages(start, self.page_size) for group in self.groups]
        tables = [table[:count] for table, count in zip(parent.pages, counts, strict=True)]
        self._adopt(request, tables, start)

    def _fork_point(self, request: Request) -> int:
        align = lcm(request.policy.align, self._fork_align)
        return (len(request.prompt) - 1) // align * align

    def _adopt(self, request: Request, tables: list[list[int]], num_computed: int) -> None:
        for pool, table in zip(self.pools, tables, strict=True):
            for page in table:
                if page >= 0:
                    pool.share(page)
        request.pages = [list(table) for table in tables]
        request.num_dropped = [sum(page < 0 for page in table) for table in tables]
        request.num_computed = num_computed
        request.num_published = num_computed // self.page_size

    def grow(self, request: Request, end: int) -> list[PageCopy] | None:
        """Makes positions [num_computed, end) writable in all groups; None if pages are short.

        Returns the copies to make before the step: pages in that range which others hold too.
        """
        start = request.num_computed
        sizes = [group.pages(end, self.page_size) for group in self.groups]
        # The first page that may be written. In which page a head keeps its next token nobody
        # knows here.
        firsts = [start // self.page_size if g.kept is None else 0 for g in self.groups]
        for pool, table, size, first in zip(self.pools, request.pages, sizes, firsts, strict=True):
            shared = sum(pool.references(page) > 1 for page in table[first:])
            if shared + max(0, size - len(table)) > pool.num_available:
                return None
        copies: list[PageCopy] = []
        for g, (pool, table) in enumerate(zip(self.pools, request.pages, strict=True)):
            for i in range(firsts[g], len(table)):
                source, table[i] = table[i], pool.make_writable(table[i], start)
                if table[i] != source:
                    copies.append((g, source, table[i]))
            # Ascending, so that what is read together is one stream in memory.
            table.extend(sorted(pool.allocate() for _ in range(len(table), sizes[g])))
        self.num_copies += len(copies)
        return copies

    def commit(self, request: Request, num_computed: int) -> None:
        """K and V up to `num_computed` are in pages: publishes full ones, drops passed ones."""
        request.num_computed = num_computed
        self.cache.publish(request)
        for g, group in enumerate(self.groups):
            # One token more than the next step needs, so that a fork one token back finds it.
            keep = group.first_needed(max(0, num_computed - 1)) // self.page_size
            sinks, table = group.sink_pages(self.page_size), request.pages[g]
            begin = sinks + request.num_dropped[g]
            if keep > begin:
                self.pools[g].release(table[begin:keep])
                table[begin:keep] = [-1] * (keep - begin)
                request.num_dropped[g] = keep - sinks

    def release(self, request: Request, trusted: bool = True) -> None:
        """Takes all pages from a request; `trusted=False` withdraws them from the cache first."""
        if not trusted:
            self.cache.withdraw(request)
        for g, table in enumerate(request.pages):
            sinks = self.groups[g].sink_pages(self.page_size)
            self.pools[g].release(table[:sinks] + table[sinks + request.num_dropped[g] :])
        request.pages, request.num_dropped = [], []
        request.num_computed = request.num_published = 0

    def check_integrity(self, running: Iterable[Request]) -> None:
        """Raises IntegrityError unless pools and the running requests' tables agree."""
        requests = list(running)
        for g, (group, pool) in enumerate(zip(self.groups, self.pools, strict=True)):
            owners: Counter[int] = Counter()
            for request in requests:
                table, dropped = request.pages[g], request.num_dropped[g]
                sinks = group.sink_pages(self.page_size)
                owners.update(table[:sinks] + table[sinks + dropped :])
                covered = len(table) >= group.pages(request.num_computed, self.page_size)
                gone = table[sinks : sinks + dropped] == [-1] * dropped
                needed = group.first_needed(request.num_computed) // self.page_size
                if not covered or not gone or self._end_of_drop(group, dropped) > needed:
                    raise IntegrityError(f"{request!r} lacks pages in group {g}: {table}.")
            pool.check_integrity(owners)


def _pool(group: LayerGroup, num_pages: int, page_size: int) -> PagePool:
    if group.kept is None:
        return PagePool(num_pages, page_size)
    return KeptPool(num_pages, page_size, group.kept.appends)
